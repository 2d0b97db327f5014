"""`nbqueue.consumer`: how a worker waits at the streams, and stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbqueue.consumer import StreamsConsumer
from nbqueue.deliveries import Outgoing, QueueSize
from nbqueue.streams import Streams
from nbqueue.wire import connect
from tests.helpers import RedisServer, wait_until


@pytest.fixture
def consumer(redis_server: RedisServer) -> Iterator[StreamsConsumer]:
    streams = Streams(connect(redis_server.url, name="test"))
    made = StreamsConsumer(streams, "c", redis_server.url, "test")
    made.open(["q"])
    made.listen()
    yield made
    made.close()
    streams.close()


@pytest.mark.parametrize("how", ["claim", "wait"])
def test_what_comes_while_a_worker_stops_goes_back_at_once(consumer: StreamsConsumer, how: str) -> None:
    streams = consumer.streams
    if how == "claim":
        streams.claim("another", 1, ["q"])  # the server knows the script from now on
        streams.publish([Outgoing("q", "task", "header", b"body")])
        assert consumer.claim(10, ["q"]) is None
    else:
        assert consumer.wait(10, ["q"], 10_000)
        streams.publish([Outgoing("q", "task", "header", b"body")])
    pending = streams.client.xpending
    wait_until(lambda: pending("nbq:{q}:n", "nbq")["pending"], 5, "it to be the consumer's")
    consumer.stop_waiting()
    assert streams.size("q") == QueueSize(1, 0, 0)
    (again,), _ = streams.claim("another", 1, ["q"])
    assert (again.id, again.attempt, again.worker_losses) == ("task", 1, 0), "uncharged"
