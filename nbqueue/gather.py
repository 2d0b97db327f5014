"""Letting messages, and the ends of tasks, gather for a moment, where very many quick ones come one by one.

A message that finds its worker idle is taken at once: its round trip is what somebody waits for. To take each by itself
costs six times what it costs in a batch, though, and takes the processor from whoever sends. A loop that waits for
each result can't be told from one that doesn't by what comes; so now and then a short pause is tried, and kept up for
as long as it brings several.
"""

from __future__ import annotations

from typing import Final

PAUSE_S: Final = 0.003
ENOUGH: Final = 10  # messages that a pause has to bring: more than those bring who wait for each of their results
SOON_S: Final = 0.02  # what comes later than this after the one before is no stream of messages
_TRY_AFTER: Final = 16  # messages, and twice as many after each pause that was in vain
_TRY_SELDOM: Final = 512


class Gather:
    """Decides when the next messages are taken. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self.until = 0.0  # when the pause that goes on, or was the last, has ended; 0.0: what comes is taken at once
        self._came = 0
        self._came_at = 0.0
        self._try_after = _TRY_AFTER

    def left_s(self, now: float) -> float:
        """Return how much longer a pause goes on, in which nothing is claimed and nothing is stored."""
        return max(0.0, self.until - now)

    def arrived(self, number: int, now: float, *, quick: bool, drained: bool) -> None:
        """Learn what a claim has brought.

        Args:
            number: of messages.
            now: the time.
            quick: their tasks are done in no time.
            drained: nothing was left behind; else there is no need to wait for more.
        """
        paused, self.until = self.until != 0.0, 0.0
        soon, self._came_at = now - self._came_at < SOON_S, now
        if not quick or not soon or not drained:
            self._came = 0
        elif paused and number >= ENOUGH:
            self._try_after = _TRY_AFTER
            self.until = now + PAUSE_S
        elif paused:
            self._came, self._try_after = 0, min(2 * self._try_after, _TRY_SELDOM)
        elif number:
            self._came += 1
            if self._came >= self._try_after:
                self._came = 0
                self.until = now + PAUSE_S
