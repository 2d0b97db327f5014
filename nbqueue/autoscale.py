"""`Autoscaler`: how many children a worker should have, by what waits and by how many were busy of late."""

from __future__ import annotations

from nbqueue.exceptions import ImproperlyConfigured


class Autoscaler:
    """Decides for one worker; knows no pool.

    Args:
        most: children.
        fewest: children; one at least, as a worker without any would claim nothing.
        keep_s: children that were not needed for so long end.
    """

    def __init__(self, most: int, fewest: int, keep_s: float) -> None:
        self.keep_s = keep_s
        self._since = 0.0
        self._peak = 0  # how many were busy at once since then
        self.most, self.fewest = _bounds(most, fewest)

    def set(self, most: int | None = None, fewest: int | None = None) -> None:
        """Set the bounds; None leaves one as it is.

        Raises:
            ImproperlyConfigured: they are none.
        """
        self.most, self.fewest = _bounds(self.most if most is None else most, self.fewest if fewest is None else fewest)

    def hold(self, size: int) -> None:
        """Widen the bounds to a size that somebody has asked for."""
        self.most, self.fewest = max(self.most, size), min(self.fewest, size)

    def size(self, now: float, size: int, busy: int, waiting: int) -> int:
        """Return how many children there should be.

        Args:
            now: seconds of a monotonic clock.
            size: how many there are.
            busy: those that have something to do.
            waiting: tasks that wait in the queues, and here.
        """
        if size < self.fewest or (busy >= size and waiting):
            self._since, self._peak = now, busy
            return max(self.fewest, min(self.most, size + max(1, min(waiting, size))))
        self._peak = max(self._peak, busy)
        if now - self._since >= self.keep_s:
            needed, self._since, self._peak = self._peak, now, busy
            size = min(size, needed)
        return max(self.fewest, min(self.most, size))


def _bounds(most: int, fewest: int) -> tuple[int, int]:
    if not 0 <= fewest <= most or not most:
        raise ImproperlyConfigured(f"autoscale takes MAX,MIN with 0 <= MIN <= MAX and MAX above 0, not {most},{fewest}")
    return most, max(1, fewest)
