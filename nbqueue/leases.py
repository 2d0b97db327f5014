"""Leases of claimed messages: renewed while their tasks run, taken over when their worker no longer renews.

Idle time on the server alone proves nothing: it runs on while the server is down and while a machine sleeps. So
a claim is taken over only when it was seen lapsed twice, one renewal apart on this process's own clock. A process
that has just connected, or stood still itself, forgets what it has seen and looks again only after a whole lease:
the others may be as late as it was, and come back within half a lease to renew what they hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from nbqueue.consumer import Renewable
from nbqueue.deliveries import Delivery

# One worker looks through a queue's claims; when it has missed two looks another does. That is sooner than a claim of
# its own could lapse, so it costs nobody time.
HOLD_RENEWALS: Final = 2.5
Place = tuple[str, str, str]  # queue, lane, entry


class Leases:
    """The leases of one worker, and its look at those of others.

    Args:
        streams: the queues.
        consumer: the name this worker claims under.
        lease_s: how long a claim holds without renewal.
        renewal_s: between two renewals, and between two looks.
    """

    def __init__(self, streams: Renewable, consumer: str, lease_s: float, renewal_s: float) -> None:
        self.streams = streams
        self.consumer = consumer
        self.lease_s = lease_s
        self.renewal_s = renewal_s
        self._lapsed: dict[Place, float] = {}
        self._awake_at = time.monotonic()
        self._look_from = 0.0

    def renew(self, deliveries: Sequence[Delivery], worker: str, advert: str) -> tuple[list[bool], dict[str, bytes]]:
        """Renew claims and show that the worker lives; return which still hold, and the marks of revoked ids."""
        return self.streams.renew(self.consumer, deliveries, worker, advert)

    def awake(self, now: float) -> bool:
        """Note that this process runs; False if it has just stood still for half a lease or longer."""
        stood_still = now - self._awake_at > self.lease_s / 2
        self._awake_at = now
        if stood_still:
            self.forget(now)
        return not stood_still

    def forget(self, now: float) -> None:
        """Begin anew: nothing has been seen lapsed, and nothing counts as such for a lease from now."""
        self._lapsed.clear()
        self._look_from = now + self.lease_s

    def sweep(self, queues: Sequence[str], mine: Iterable[Delivery], now: float) -> int:
        """Return to their queues what other workers have let lapse; return how many.

        Args:
            queues: where to look, unless another worker does.
            mine: claims of this worker, renewed just now.
            now: this process's monotonic clock, seconds.
        """
        if now < self._look_from:
            return 0
        idle_ms = int(self.lease_s * 1000)
        held = {(d.queue, d.lane, d.entry) for d in mine}
        watched = self.streams.sweeps(queues, self.consumer, int(HOLD_RENEWALS * self.renewal_s * 1000))
        seen = [place for place in self.streams.lapsed(watched, idle_ms) if place not in held]
        self._lapsed = {place: self._lapsed.get(place, now) for place in seen}
        certain = [place for place, since in self._lapsed.items() if now - since >= 0.8 * self.renewal_s]
        return self.streams.reap(certain, idle_ms)
