"""What Celery's settings say of encryption: `broker_use_ssl` and `redis_backend_use_ssl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nbqueue.exceptions import ImproperlyConfigured

_FILES: Final = ("keyfile", "certfile", "ca_certs", "password")
# By the numbers of Python's ssl module, which would cost 10 ms to load.
_CERT_REQS: Final = {0: "none", 1: "optional", 2: "required"}


def tls_options(name: str, value: Any) -> dict[str, str] | None:
    """Return what a setting says of encryption, by names as in URLs; None for nothing.

    >>> tls_options("broker_use_ssl", {"ssl_cert_reqs": 2, "ca_certs": "/ca.pem"})
    {'ssl_cert_reqs': 'required', 'ssl_ca_certs': '/ca.pem'}

    Raises:
        ImproperlyConfigured: it says something else.
    """
    if not value:
        return None
    if value is True:
        return {}
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(f"{name} must be True, False or a dict with {_known()}, not {type(value).__name__}")
    found: dict[str, str] = {}
    for key, part in value.items():
        short = str(key).removeprefix("ssl_")
        if short == "cert_reqs":
            found["ssl_cert_reqs"] = _cert_reqs(name, part)
        elif short == "check_hostname" and isinstance(part, bool):
            found["ssl_check_hostname"] = str(part)
        elif short in _FILES and isinstance(part, str):
            found[f"ssl_{short}"] = part
        elif part is not None:
            raise ImproperlyConfigured(f"{name} can't have {key!r}, or not that value of it; it may have {_known()}")
    return found


def _cert_reqs(name: str, value: Any) -> str:
    word = _CERT_REQS.get(value) if isinstance(value, int) else str(value).lower().removeprefix("cert_")
    if value is None or word not in _CERT_REQS.values():
        raise ImproperlyConfigured(f"{name}: cert_reqs must be 'required', 'optional' or 'none', not {value!r}")
    return str(word)


def _known() -> str:
    return ", ".join(("cert_reqs", "check_hostname", *_FILES))
