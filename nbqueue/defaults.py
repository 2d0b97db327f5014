"""What an app's settings say of its calls, made of them once and not for each call."""

from __future__ import annotations

from typing import NamedTuple

from nbqueue import contents
from nbqueue.acks import Acks
from nbqueue.config import Settings
from nbqueue.limits import Limits
from nbqueue.rates import per_second


class Defaults(NamedTuple):
    """Holds for calls that say nothing themselves.

    Args:
        version: of the settings that it is made of.
        limits: of time and memory.
        acks: when messages are acknowledged.
        sent_acks: what a message brings along that says that.
        rate: tasks of one name a second; 0.0: as many as there are.
        serializer: of arguments.
        form: serializer and compression of values; empty where both are as ever.
        extended: results have the arguments of their calls.
    """

    version: int
    limits: Limits
    acks: Acks
    sent_acks: Acks | None
    rate: float
    serializer: str
    form: tuple[str, ...]
    extended: bool


def defaults_of(conf: Settings) -> Defaults:
    """Return what settings say."""
    acks = Acks.of_settings(conf)
    as_ever = conf.result_serializer == contents.DEFAULT and not conf.result_compression
    return Defaults(
        conf.version,
        Limits(conf.task_time_limit, conf.task_soft_time_limit, conf.task_memory_limit),
        acks,
        acks.as_sent(),
        per_second(conf.task_default_rate_limit),
        conf.task_serializer,
        () if as_ever else (conf.result_serializer, conf.result_compression),
        conf.result_extended,
    )
