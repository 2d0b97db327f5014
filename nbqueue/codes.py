"""Code that calls bring by value again and again: kept once in the backend, where each call names it by digest."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from nbqueue.backends.base import Backend
from nbqueue.deliveries import LIVE_S, code_name
from nbqueue.messages import sign_code
from nbqueue.signing import Signer

DAY_S: Final = 86_400.0
MOST: Final = 100  # functions whose code is remembered here


class Codes:
    """Tells which code a call may name rather than bring along. Code that is met for the first time travels.

    Args:
        backend: asked for when something is to be kept.
        signer: signs what is kept.
    """

    def __init__(self, backend: Callable[[], Backend], signer: Signer) -> None:
        self._backend = backend
        self._signer = signer
        self._lock = threading.Lock()
        self._met: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # code, and until when it is kept

    def is_kept(self, digest: str, code: bytes, until: float) -> bool:
        """Tell whether a call that may start until `until` (Unix seconds) finds this code in the backend.

        Raises:
            BackendUnavailable: it was to be kept there, and no answer came.
        """
        with self._lock:
            met = self._met.get(digest)
            if met is None:
                self._met[digest] = code, 0.0
                if len(self._met) > MOST:
                    self._met.popitem(last=False)
                return False
            if met[1] < until + LIVE_S:  # as long as the call may wait, and then be run again
                self._keep(digest, code, until + LIVE_S + DAY_S)
            else:
                self._met.move_to_end(digest)
            return True

    def keep_again(self, digests: Iterable[str]) -> None:
        """Keep code that the backend has lost.

        Raises:
            BackendUnavailable: no answer came.
        """
        with self._lock:
            for digest in digests:
                if digest in self._met:
                    self._keep(digest, *self._met[digest])

    def _keep(self, digest: str, code: bytes, until: float) -> None:
        text = sign_code(digest, code, self._signer)
        self._backend().store_group(code_name(digest), text, until - time.time())
        self._met[digest] = code, until
        self._met.move_to_end(digest)
