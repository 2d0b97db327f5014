"""Messages that somebody else wrote: refused, counted, and nothing stops."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from nbqueue import App
from nbqueue.exceptions import BadMessage, TimeoutError  # noqa: A004
from nbqueue.messages import Call, Control, Facts, Message, Steering, new_id, pack_body, sign_control, sign_record
from nbqueue.signing import Signer, create_key_file
from tests.faults.test_processes import runs
from tests.hand import Field, put, take
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(60)]


def steering(name: str = "tests.project.add", queue: str = "nbqueue") -> Steering:
    return Steering(id=new_id(), nonce=uuid.uuid4().hex, task=name, queue=queue, sent_at=time.time())


def genuine(site: Site, folder: Path, name: str) -> Message:
    """Return a message that a worker would run, and that waits for one."""
    result = site.app.send_task("tests.project.note", (str(folder), name))
    (fields,) = taken = take(site)
    put(site, taken)
    message = opened(site, fields)
    assert message.id == result.id
    return message


def opened(site: Site, fields: Mapping[str, Field]) -> Message:
    header, body = fields["h"], fields["b"]
    assert isinstance(body, bytes)
    return Message.open(header if isinstance(header, bytes) else str(header).encode(), body, site.app.signer)


def add(site: Site, **fields: Field) -> None:
    put(site, [fields])


def counted(site: Site, reason: str) -> int:
    return site.streams.counters().get(reason, 0)


def still_works(site: Site) -> bool:
    return bool(site.app.send_task("tests.project.add", (20, 22)).get(timeout=15) == 42)


def test_garbage_is_refused_and_counted(site: Site) -> None:
    site.worker()
    add(site, x="y")
    add(site, i="id", h=b"\xff\xfe\x00 not text", b=b"")
    add(site, i="id2", h="1.deadbeef", b=b"\x80\x05")
    add(site, i=b"\xff\xfe", h="a.b.c.d", b=b"")
    wait_until(lambda: counted(site, "refused:format") + counted(site, "put off") >= 3, 10, "them to be refused")
    assert still_works(site)


def test_unsigned_message_is_never_run(site: Site, tmp_path: Path) -> None:
    site.worker()
    text = msgspec.json.encode(steering()).decode()
    add(site, i="id", h=text, b=pack_body(b"", b"cos\nsystem\n(S'touch x'\ntR."))
    wait_until(lambda: counted(site, "refused:format") + counted(site, "refused:version") == 1, 10, "the refusal")
    assert still_works(site)


def test_altered_message_is_refused(site: Site, tmp_path: Path) -> None:
    message = genuine(site, tmp_path, "genuine")
    for header, body in (
        (message.header.replace("tests.project.note", "tests.project.nope"), message.body),
        (message.header, message.body + b"x"),
    ):
        add(site, i=f"{message.id}x", h=header, b=body)
    site.worker()
    wait_until(lambda: counted(site, "refused:signature") == 2, 10, "them to be refused")
    assert still_works(site)
    assert runs(tmp_path)["genuine"] == 1


def test_message_under_another_id_or_queue_is_refused(site: Site, tmp_path: Path) -> None:
    message = genuine(site, tmp_path, "genuine")
    add(site, i="another-id", h=message.header, b=message.body)
    put(site, [{"i": message.id, "h": message.header, "b": message.body}], queue="other")
    site.worker("-Q", "nbqueue,other")
    wait_until(lambda: counted(site, "refused:place") == 2, 10, "them to be refused")
    assert still_works(site)
    wait_until(lambda: runs(tmp_path)["genuine"] == 1, 5, "the genuine one to run")


def test_message_of_another_key_is_left_to_others_and_not_run(site: Site, tmp_path: Path) -> None:
    site.worker()
    forged = Message.sign(steering(), pack_body(b"", b"\x80\x05."), Signer(b"f" * 32))
    add(site, i=forged.id, h=forged.header, b=forged.body)
    wait_until(lambda: counted(site, "put off") >= 1, 10, "it to be put off")
    assert still_works(site)


def test_replayed_messages_run_nothing_again(site: Site, tmp_path: Path) -> None:
    message = genuine(site, tmp_path, "once")
    replay: dict[str, Field] = {"i": message.id, "h": message.header, "b": message.body}
    add(site, **replay)  # while the first waits
    site.worker()
    wait_until(lambda: runs(tmp_path)["once"] == 1, 10, "the first to run")
    assert still_works(site)
    add(site, **replay)  # after it has ended
    assert still_works(site)
    wait_until(lambda: site.app.broker.size("nbqueue").queued == 0, 5, "the queue to be empty")
    wait_until(lambda: counted(site, "repeat") >= 2, 10, "both to be dropped")
    assert runs(tmp_path)["once"] == 1


def test_message_replayed_while_its_task_runs_is_dropped(site: Site, tmp_path: Path) -> None:
    result = site.app.send_task("tests.project.note", (str(tmp_path), "once", 2.0))
    taken = take(site)
    put(site, taken)
    site.worker()
    site.worker()
    wait_until(lambda: runs(tmp_path)["once"] == 1, 10, "it to run")
    put(site, taken)
    # At once on Redis, which compares the two; on RabbitMQ a lease or more later, once the task has ended.
    wait_until(lambda: counted(site, "repeat") == 1, 15, "the replay to be dropped")
    assert result.get(timeout=10) == "once"
    assert runs(tmp_path)["once"] == 1


@pytest.mark.parametrize("header", ["garbage", "1.deadbeef.mac.{}"], ids=["garbage", "another key"])
def test_forged_message_under_the_id_of_a_live_task_does_not_displace_it(
    site: Site, tmp_path: Path, header: str
) -> None:
    results = [site.app.send_task("tests.project.note", (str(tmp_path), f"t{n}")) for n in range(20)]
    delayed = site.app.send_task("tests.project.note", (str(tmp_path), "delayed"), countdown=2.0)
    both = [one for fields in take(site) for one in ({**fields, "h": header}, fields)]
    put(site, [{"i": delayed.id, "h": header, "b": b""}, *both])
    site.worker(concurrency=8)
    assert [result.get(timeout=20) for result in (*results, delayed)] == [*(f"t{n}" for n in range(20)), "delayed"]
    assert set(runs(tmp_path).values()) == {1}


def test_worker_of_another_key_runs_nothing_and_leaves_everything_to_others(site: Site, tmp_path: Path) -> None:
    other_key = tmp_path / "key"
    create_key_file(other_key)
    stranger = site.worker(NBQUEUE_KEY_FILE=str(other_key))
    notes = tmp_path / "notes"
    notes.mkdir()
    sent = [site.app.send_task("tests.project.note", (str(notes), f"t{n}")) for n in range(3)]
    wait_until(lambda: counted(site, "put off") >= 3, 20, "the stranger to put them off")
    assert not runs(notes)
    assert stranger.process.poll() is None
    stranger.signal(signal.SIGTERM)  # else it may be the first again each time that they are due
    assert stranger.wait() == 0
    site.worker()
    assert [result.get(timeout=30) for result in sent] == [f"t{n}" for n in range(3)]
    assert set(runs(notes).values()) == {1}


def test_client_of_another_key_is_not_obeyed_and_believes_nothing(site: Site, tmp_path: Path) -> None:
    site.worker()
    other_key = tmp_path / "key"
    create_key_file(other_key)
    stranger = App(
        "stranger",
        broker=site.broker_url,
        backend=site.server.url if site.on_rabbitmq else None,
        key_file=other_key,
        set_as_current=False,
    )
    notes = tmp_path / "notes"
    notes.mkdir()
    with stranger:
        stranger.conf.task_default_queue = site.queue
        mine = site.app.send_task("tests.project.note", (str(notes), "mine", 1.0))
        wait_until(lambda: runs(notes)["mine"] == 1, 10, "it to run")
        order = Control(order="revoke", at=time.time(), nonce="n", ids=(mine.id,), terminate=True)
        stranger.backend.order(sign_control(order, stranger.signer))
        wait_until(lambda: counted(site, "refused:key") == 1, 10, "the order to be refused")
        theirs = stranger.send_task("tests.project.note", (str(notes), "theirs"))
        wait_until(lambda: counted(site, "put off") >= 1, 10, "their task to be put off")
        assert mine.get(timeout=20) == "mine"
        with pytest.raises(BadMessage, match="key"):
            stranger.AsyncResult(mine.id).get(timeout=5.0)
        with pytest.raises(TimeoutError):
            theirs.get(timeout=1.0)
    assert set(runs(notes)) == {"mine"}
    assert still_works(site)


def test_message_of_another_key_does_not_starve_those_behind_it(site: Site) -> None:
    other = Signer(b"f" * 32)
    forged = [Message.sign(steering(), pack_body(b"", b"\x80\x05."), other) for _ in range(500)]
    put(site, [{"i": message.id, "h": message.header, "b": message.body} for message in forged])
    site.worker()
    assert still_works(site)
    wait_until(lambda: site.app.broker.size("nbqueue").queued == 0, 10, "all to be put off")


def test_altered_member_of_a_map_is_refused(site: Site, tmp_path: Path) -> None:
    task = site.app.task(lambda path, text: Path(path).write_text(text), by_value=True)
    results = task.starmap([(str(tmp_path / "a"), "right"), (str(tmp_path / "b"), "right")])
    first, second = take(site)
    anothers_arguments, anothers_id = {**first, "b": second["b"]}, {**first, "i": second["i"]}
    put(site, [anothers_arguments, anothers_id, second])
    site.worker()
    assert results[1].get(timeout=10) == len("right")
    wait_until(lambda: counted(site, "refused:signature") == counted(site, "refused:place") == 1, 10, "the refusals")
    assert not (tmp_path / "a").exists()


def test_maps_shared_part_that_was_altered_is_refused(site: Site, tmp_path: Path) -> None:
    task = site.app.task(lambda path: Path(path).touch(), by_value=True)
    results, other = task.map([tmp_path / "a"]), task.map([tmp_path / "b"])
    client = site.streams.client
    client.set(f"nbq:group:{results.id}", client.get(f"nbq:group:{other.id}") or b"")
    site.worker()
    other.get(timeout=10)
    wait_until(lambda: counted(site, "refused:place") == 1, 10, "the refusal")
    assert not (tmp_path / "a").exists()


def test_call_of_an_unknown_map_ends_as_a_failure(site: Site) -> None:
    site.worker()
    header = site.app.signer.sign("call", msgspec.json.encode(Call("nowhere", 0)), b"\x80\x05.")
    add(site, i="nowhere-0", h=header, b=b"\x80\x05.")
    wait_until(lambda: site.app.backend.load(["nowhere-0"])[0] is not None, 10, "its record")
    assert still_works(site)


def test_forged_and_replayed_orders_are_not_followed(site: Site) -> None:
    worker = site.worker()
    now = time.time()
    order = Control(order="shutdown", at=now, nonce="n", workers=(worker.name,))
    backend = site.app.backend
    backend.order("garbage")
    backend.order(sign_control(order, Signer(b"f" * 32)))
    backend.order(sign_control(msgspec.structs.replace(order, at=now - 3600), site.app.signer))
    backend.order(sign_control(msgspec.structs.replace(order, order="nothing", nonce="m"), site.app.signer))
    backend.order(sign_control(msgspec.structs.replace(order, order="nothing", nonce="m"), site.app.signer))
    wait_until(lambda: counted(site, "refused:replay") == 2, 10, "old and repeated orders to be refused")
    assert counted(site, "refused:key") == 1
    assert still_works(site)
    backend.order(sign_control(order, site.app.signer))
    assert worker.wait() == 0


@pytest.mark.parametrize("forged_by", ["nobody", "somebody who knows the key's id", "somebody with another key"])
def test_forged_result_is_not_believed(site: Site, forged_by: str) -> None:
    result = site.app.send_task("tests.project.add", (1, 2))
    facts = Facts(kind="record", id=result.id, at=time.time(), state="SUCCESS")
    other = json.loads(sign_record(facts, b"\x80\x05K*.", Signer(b"f" * 32)))
    header = "1.deadbeef.x.{}"
    if forged_by != "nobody":
        header = other["nbq"]
    if forged_by == "somebody who knows the key's id":
        version, _, mac, text = header.split(".", 3)
        header = f"{version}.{site.app.signer.key_id}.{mac}.{text}"
    forged = {**other, "nbq": header}
    text = msgspec.json.encode(forged).decode()
    site.streams.client.xadd(f"nbq:session:{site.app.session}", {"f": f"[{text}]"})
    site.streams.client.set(f"celery-task-meta-{result.id}", text)
    site.worker()
    assert result.get(timeout=15) == 3
