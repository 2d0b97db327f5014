"""The queues of one server, where the broker's contract doesn't look."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import msgspec
import pytest
import redis

from nbqueue.deliveries import CODE_GONE, REPEAT, SENT, WORKERS, Delivery, Outgoing, QueueSize, Settlement, stream_key
from nbqueue.streams import Streams, script
from nbqueue.wire import BlockingRead, connect
from tests.helpers import RedisServer, wait_until


@pytest.fixture
def streams(redis_server: RedisServer) -> Iterator[Streams]:
    client = connect(redis_server.url, name="test")
    made = Streams(client)
    yield made
    client.close()


def send(streams: Streams, *ids: str, queue: str = "q", due_ms: int = 0) -> None:
    assert streams.publish([Outgoing(queue, id_, "header", b"body", due_ms) for id_ in ids]) == [SENT] * len(ids)


def claimed(streams: Streams, consumer: str = "c", limit: int = 100) -> list[Delivery]:
    return streams.claim(consumer, limit, ["q"])[0]


def test_script_that_the_server_has_forgotten_is_sent_again(streams: Streams) -> None:
    send(streams, "a")
    streams.client.script_flush()
    send(streams, "b")
    assert [delivery.id for delivery in claimed(streams)] == ["a", "b"]
    assert script("claim")[1] == script("claim")[1]


def test_thousands_are_published_in_parts_and_claimed_in_order(streams: Streams) -> None:
    ids = [str(number) for number in range(1_300)]
    send(streams, *ids)
    assert [delivery.id for delivery in claimed(streams, limit=2_000)] == ids


def fresh(id_: str, code: str = "") -> Outgoing:
    record = f'{{"status":"PENDING","nonce":"{id_}"}}'.encode()
    return Outgoing("q", id_, f'{{"nonce":"{id_}"}}', b"body", nonce=id_, record=record, code=code, fresh=True)


def test_few_of_new_ids_are_sent_with_their_records(redis_server: RedisServer) -> None:
    client = connect(redis_server.url, name="test")
    streams = Streams(client, records="record-")
    assert streams.publish([fresh("a"), fresh("b")]) == [SENT, SENT]
    assert client.get("record-a") == fresh("a").record
    assert client.pttl("record-a") > 29 * 86_400_000
    assert [(d.id, d.header, d.body, d.attempt) for d in claimed(streams)] == [
        (id_, fresh(id_).header.encode(), b"body", 1) for id_ in ("a", "b")
    ]
    assert streams.queues() == {"q"}
    again = msgspec.structs.replace(fresh("a"), fresh=False)
    assert streams.publish([again]) == [REPEAT], "the script knows what was sent without it"
    client.close()


def test_few_whose_code_is_gone_say_so(redis_server: RedisServer) -> None:
    client = connect(redis_server.url, name="test")
    streams = Streams(client, records="record-")
    client.set("nbq:group:code:here", "code")
    assert streams.publish([fresh("a", "here"), fresh("b", "gone"), fresh("c")]) == [CODE_GONE, CODE_GONE, SENT]
    client.close()


def test_nothing_of_a_few_is_sent_when_the_server_refuses(private_redis: RedisServer) -> None:
    client = connect(private_redis.url, name="test")
    streams = Streams(client, records="record-")
    client.config_set("maxmemory", "1")
    with pytest.raises(redis.ResponseError):
        streams.publish([fresh("a"), fresh("b")])
    client.config_set("maxmemory", "0")
    assert client.exists("record-a", stream_key("q", "n")) == 0
    assert streams.publish([fresh("a")]) == [SENT]
    client.close()


def test_keeper_is_woken_by_a_few_where_no_worker_is(redis_server: RedisServer) -> None:
    client = connect(redis_server.url, name="test")
    streams = Streams(client, wake_key="wake")
    streams.publish([fresh("a", "gone")])
    streams.publish([fresh("b")])
    assert client.llen("wake") == 1, "one hint is enough"
    client.delete("wake")
    client.hset(WORKERS, "w", "advert")
    streams.publish([fresh("c")])
    assert client.llen("wake") == 0
    client.close()


def test_queue_counts_what_waits_is_claimed_and_is_delayed(streams: Streams) -> None:
    send(streams, "a", "b", "c")
    send(streams, "later", due_ms=int((time.time() + 60) * 1000))
    claimed(streams, limit=1)
    size = streams.size("q")
    assert (size.queued, size.claimed, size.delayed) == (2, 1, 1)
    assert streams.queues() == {"q"}


def test_claim_tells_when_the_next_delayed_message_is_due(streams: Streams) -> None:
    send(streams, "later", due_ms=int((time.time() + 60) * 1000))
    deliveries, due_s = streams.claim("c", 10, ["q"])
    assert deliveries == []
    assert due_s is not None
    assert 50 < due_s <= 60
    assert streams.claim("c", 10, ["other"])[1] is None


def test_only_the_owner_renews_and_settles(streams: Streams) -> None:
    send(streams, "a")
    mine = claimed(streams, "mine")
    assert streams.lapsed(["q"], 0) != []
    assert streams.reap(streams.lapsed(["q"], 0), 0) == 1
    others = claimed(streams, "other")
    assert [delivery.id for delivery in others] == ["a"]
    assert streams.settle([Settlement(mine[0], b"{}")]) == [False]
    assert streams.settle([Settlement(others[0], b"{}")]) == [True]
    assert streams.size("q").claimed == 0


def test_reaper_leaves_alone_what_was_renewed_since_it_looked(streams: Streams) -> None:
    send(streams, "a")
    [delivery] = claimed(streams)
    time.sleep(0.05)
    lapsed = streams.lapsed(["q"], 40)
    assert len(lapsed) == 1
    streams.renew("c", [delivery], "name", "{}")
    assert streams.reap(lapsed, 40) == 0


def test_giving_back_charges_only_what_it_says(streams: Streams) -> None:
    send(streams, "a")
    for charge, deaths in (("none", 0), ("child", 1), ("none", 1)):
        [delivery] = claimed(streams)
        streams.give_back([delivery], charge)
        [again] = claimed(streams)
        assert again.child_deaths == deaths
        streams.give_back([again])


def test_what_is_put_off_comes_later_and_is_not_lost(streams: Streams) -> None:
    send(streams, "a")
    streams.put_off(claimed(streams), 150)
    assert claimed(streams) == []
    wait_until(lambda: [delivery.id for delivery in claimed(streams)] == ["a"], 5, "the message")


def test_quarantine_keeps_the_beginning_and_counts(streams: Streams) -> None:
    assert streams.publish([Outgoing("q", "a", "header", b"x" * 10_000)]) == [SENT]
    streams.quarantine([(claimed(streams)[0], "signature: forged")])
    assert streams.counters() == {"refused:signature": 1}
    size = streams.size("q")
    assert (size.queued, size.claimed) == (0, 0)


def test_group_that_was_lost_is_made_again_and_nothing_with_it(streams: Streams) -> None:
    send(streams, "a", "b")
    streams.client.xgroup_destroy("nbq:{q}:n", "nbq")
    streams.ensure_groups(["q"])
    assert [delivery.id for delivery in claimed(streams)] == ["a", "b"]


def test_idle_worker_is_woken_by_a_message_and_gets_it(streams: Streams, redis_server: RedisServer) -> None:
    streams.ensure_groups(["q"])
    read = BlockingRead(connect(redis_server.url, name="reader"))
    read.start(streams.read_command("c", 10, ["q"], 5_000))
    assert not select.select([read], [], [], 0)[0]
    send(streams, "a")
    assert select.select([read], [], [], 5)[0]
    assert [delivery.id for delivery in streams.claim("c", 0, ["q"], streams.parse_read(read.finish()))[0]] == ["a"]
    read.close()


def test_wait_that_is_cancelled_gives_what_came_just_before(streams: Streams, redis_server: RedisServer) -> None:
    streams.ensure_groups(["q"])
    read = BlockingRead(connect(redis_server.url, name="reader"))
    assert read.cancel(streams.client) is None
    read.start(streams.read_command("c", 10, ["q"], 60_000))
    began = time.monotonic()
    assert not read.cancel(streams.client)
    assert time.monotonic() - began < 5
    read.start(streams.read_command("c", 10, ["q"], 60_000))
    send(streams, "a")
    select.select([read], [], [], 5)
    assert [delivery.id for delivery in streams.parse_read(read.cancel(streams.client))] == ["a"]
    read.close()


def test_client_fails_at_once_where_nothing_answers(private_redis: RedisServer) -> None:
    client = connect(private_redis.url, name="test")
    assert client.ping()
    private_redis.kill()
    began = time.monotonic()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert time.monotonic() - began < 2
    client.close()


def test_consumer_is_forgotten_only_when_it_holds_nothing(streams: Streams) -> None:
    send(streams, "a")
    [delivery] = claimed(streams)
    streams.forget_consumer("c", ["q"])
    assert [one["name"] for one in streams.client.xinfo_consumers("nbq:{q}:n", "nbq")] == [b"c"]
    assert streams.settle([Settlement(delivery, b"{}")]) == [True]
    streams.forget_consumer("c", ["q"])
    assert streams.client.xinfo_consumers("nbq:{q}:n", "nbq") == []


def test_copies_in_two_lanes_are_told_apart_when_they_came_in_the_same_millisecond(streams: Streams) -> None:
    for lane in ("r", "n"):
        streams.client.xadd(stream_key("q", lane), {"i": "a", "h": "header", "b": b"body"}, id="5-0")
    (delivery,) = claimed(streams)
    assert (delivery.lane, streams.counters()["repeat"]) == ("r", 1)
    assert streams.size("q") == QueueSize(0, 1, 0)


def test_claim_whose_entry_is_gone_does_not_stand_in_the_way_of_the_next(streams: Streams) -> None:
    send(streams, "a")
    (lost,) = claimed(streams)
    streams.client.delete(stream_key("q", "n"))  # by somebody's hand
    # A stream that is made anew within the same millisecond would begin with the same entry.
    wait_until(lambda: time.time() * 1000 > int(lost.entry.partition("-")[0]) + 1, 5, "another millisecond")
    send(streams, "a")
    (delivery,) = claimed(streams)
    assert streams.settle([Settlement(lost, b""), Settlement(delivery, b"")]) == [False, True]
    assert streams.size("q") == QueueSize(0, 0, 0)
