"""Orders to workers: signed, fresh for a minute, each followed once."""

from __future__ import annotations

from typing import Final

from nbqueue.exceptions import BadMessage
from nbqueue.messages import Control, open_control
from nbqueue.signing import Signer

FRESH_S: Final = 60.0


class Orders:
    """Opens orders for one worker."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer
        self._seen: dict[str, float] = {}

    def open(self, text: bytes, now: float) -> Control:
        """Return the order in a signed text.

        Args:
            text: as it came from the stream.
            now: Unix seconds.

        Raises:
            BadMessage: it can't be trusted, is old, or came before.
        """
        order = open_control(text, self.signer)
        if abs(now - order.at) > FRESH_S:
            raise BadMessage("replay", f"an order {now - order.at:.0f} s old")
        if order.nonce in self._seen:
            raise BadMessage("replay", "an order that came before")
        self._seen = {nonce: at for nonce, at in self._seen.items() if now - at < 2 * FRESH_S}
        self._seen[order.nonce] = now
        return order
