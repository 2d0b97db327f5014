"""When a task's message is acknowledged, and what follows when it fails or what ran it is lost: Celery's options."""

from __future__ import annotations

from typing import Any, Final, Protocol, Self

import msgspec

from nbqueue.exceptions import ImproperlyConfigured

ACK_OPTIONS: Final = (
    *("acks_late", "acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout", "reject_on_worker_lost"),
    "retry_on_worker_lost",
)  # fmt: skip


class AckSettings(Protocol):
    """Has the settings of an app."""

    task_acks_late: bool
    task_acks_on_failure_or_timeout: bool
    task_acks_on_failure: bool | None
    task_acks_on_timeout: bool | None
    task_reject_on_worker_lost: bool
    task_retry_on_worker_lost: bool


class Acks(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a task says of its message; None: as its app or its worker says.

    Args:
        late: it is acknowledged once the task has ended. False: it counts as acknowledged from its claim on, so that
            it never runs a second time.
        on_failure: a failure ends it for good. False: its message is kept among the dead letters.
        on_timeout: a hard time limit ends it for good. False: it runs again, as after the loss of a child.
        again: it runs again when its child is lost, a few times. False: it fails at the first.
        retry: the loss of its child is one of its retries, whatever the others say of that.
        max_retries: how often such a task may be retried; None for as often as a task may end its child.
        retry_delay: seconds until it is.
    """

    late: bool | None = None
    on_failure: bool | None = None
    on_timeout: bool | None = None
    again: bool | None = None
    retry: bool | None = None
    max_retries: int | None = 3
    retry_delay: float = 180.0

    @classmethod
    def of_options(cls, options: dict[str, Any]) -> Self | None:
        """Take a task's options out of all those it was given; None if it says nothing.

        Raises:
            ImproperlyConfigured: one is no truth value.
        """
        if not options:
            return None
        given = {name: options.pop(name) for name in ACK_OPTIONS if name in options}
        for name, value in given.items():
            if value is not None and not isinstance(value, bool):
                raise ImproperlyConfigured(f"{name} must be True or False, not {value!r}")
        if all(value is None for value in given.values()):
            return None
        both = given.get("acks_on_failure_or_timeout")
        own = (given.get("acks_on_failure"), given.get("acks_on_timeout"))
        on_failure, on_timeout = (both if one is None else one for one in own)
        again, retry = given.get("reject_on_worker_lost"), given.get("retry_on_worker_lost")
        return cls(given.get("acks_late"), on_failure, on_timeout, again, retry)

    @classmethod
    def of_settings(cls, conf: AckSettings) -> Self:
        """Return what an app's settings say."""
        both = conf.task_acks_on_failure_or_timeout
        own = (conf.task_acks_on_failure, conf.task_acks_on_timeout)
        on_failure, on_timeout = (both if one is None else one for one in own)
        # Off is what is said where nobody says anything, and costs messages nothing.
        retry = conf.task_retry_on_worker_lost or None
        return cls(conf.task_acks_late, on_failure, on_timeout, conf.task_reject_on_worker_lost, retry)

    def or_else(self, other: Acks | None) -> Acks:
        """Return this, and what another says where this says nothing."""
        if other is None:
            return self
        return Acks(
            other.late if self.late is None else self.late,
            other.on_failure if self.on_failure is None else self.on_failure,
            other.on_timeout if self.on_timeout is None else self.on_timeout,
            other.again if self.again is None else self.again,
            *((other if self.retry is None else self).retries),
        )

    @property
    def retries(self) -> tuple[bool | None, int | None, float]:
        """Return what it says of retries."""
        return self.retry, self.max_retries, self.retry_delay

    def retried_as(self, max_retries: int | None, default_retry_delay: float) -> Acks:
        """Return this for a task with these options; itself if such a loss is none of its retries."""
        if not self.retry:
            return self
        return msgspec.structs.replace(self, max_retries=max_retries, retry_delay=default_retry_delay)

    def as_sent(self) -> Acks | None:
        """Return what a message brings along that says this: None for the defaults, which cost nothing."""
        return None if self == DEFAULT_ACKS else self


DEFAULT_ACKS: Final = Acks(late=True, on_failure=True, on_timeout=True, again=True)
EARLY: Final = "acks_late is off, so it isn't run again"
RETRIED_ALL: Final = "it has been retried {} times, as often as it may"
FIRST_LOSS: Final = "reject_on_worker_lost is off, so it isn't run again"
