from __future__ import annotations

import pytest

from nbqueue.exceptions import BadMessage
from nbqueue.messages import Control, sign_control
from nbqueue.orders import FRESH_S, Orders
from nbqueue.signing import Signer

SIGNER = Signer(b"k" * 32)
NOW = 1_000_000.0


def order(nonce: str = "n", at: float = NOW) -> bytes:
    return sign_control(Control(order="revoke", at=at, nonce=nonce, ids=("a", "b")), SIGNER).encode()


def test_order_is_followed_when_it_is_signed_and_fresh() -> None:
    assert Orders(SIGNER).open(order(), NOW).ids == ("a", "b")


@pytest.mark.parametrize("age_s", [FRESH_S + 1, -FRESH_S - 1])
def test_order_is_refused_when_it_is_old_or_from_the_future(age_s: float) -> None:
    with pytest.raises(BadMessage, match="replay"):
        Orders(SIGNER).open(order(at=NOW - age_s), NOW)


def test_order_is_followed_once_and_refused_after() -> None:
    orders = Orders(SIGNER)
    orders.open(order(), NOW)
    with pytest.raises(BadMessage, match="came before"):
        orders.open(order(), NOW + 1)
    assert orders.open(order("other"), NOW + 1).nonce == "other"


def test_orders_forget_what_is_too_old_to_come_again() -> None:
    orders = Orders(SIGNER)
    for number in range(100):
        at = NOW + number * FRESH_S
        orders.open(order(str(number), at), at)
    assert len(orders._seen) <= 3
