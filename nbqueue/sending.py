"""`Sender`: how calls, maps and canvases get from a client to the broker, and what is known of them before they do."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nbqueue import plans, signals, states
from nbqueue import result as results
from nbqueue.config import AMQP_SCHEMES, scheme_of
from nbqueue.deliveries import CODE_GONE, LIVE, LIVE_S, Outgoing
from nbqueue.exceptions import (
    BackendUnavailable,
    BadMessage,
    BlobNotStored,
    ImproperlyConfigured,
    PayloadTooLarge,
    SendFailed,
    SendUncertain,
)
from nbqueue.expand import Plan
from nbqueue.graph import Drawn, Given, draw, sign_graph
from nbqueue.link import embedded_link
from nbqueue.messages import (
    MAX_MESSAGE_BYTES,
    MAX_STEERING_BYTES,
    Ids,
    Message,
    Steering,
    Step,
    encode_steering,
    open_fact,
    pack_body,
    pending_facts,
    sign_group,
    sign_record,
)
from nbqueue.payloads import Packer
from nbqueue.pipeline import Pipeline
from nbqueue.request import Request, current_request
from nbqueue.spread import copies_of
from nbqueue.watched import WatchedMap, WatchedTask
from nbqueue.watcher import listened_queues

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.publishing import Publication

T = TypeVar("T")
_MAP_CHUNK: Final = 500  # as many as one script takes: workers begin with them while the next are made


class Sender:
    """Sends for one app; from any thread.

    Args:
        app: whose broker, backend, key and watcher it uses.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self._ids = Ids()
        self._pipelines = threading.local()

    def send(
        self,
        steering: Steering,
        code: bytes,
        args: bytes,
        packer: Packer | None = None,
        *,
        task_id: str | None = None,
        ignore_result: bool = False,
        retry: bool | None = None,
        retry_policy: Mapping[str, float] | None = None,
        add_to_parent: bool = True,
        watched_by: Callable[[str, Steering, str], WatchedTask] = WatchedTask,
    ) -> results.AsyncResult:
        """Send one task; return its handle once the broker has it.

        Args:
            steering: everything but id and nonce.
            code: what `steering.code` is the digest of; empty for a task by name.
            args: packed arguments.
            packer: holds what code and arguments name of large data.
            task_id: the id to use.
            ignore_result: keep no value.
            retry: try again when the broker can't be reached.
            retry_policy: how often, and how long between.
            add_to_parent: note it as a child of the task that sends it, if one does.
            watched_by: makes what is told of its end, from its id, that steering and the session.
        """
        app = self.app
        if not app.spread.is_one(app.conf, steering.queue):
            sent: list[results.AsyncResult] = []
            for queue in self.queues_of(steering.queue):
                copy = msgspec.structs.replace(steering, queue=queue)
                sent.append(
                    self.send(
                        copy,
                        code,
                        args,
                        packer,
                        task_id=None if sent else task_id,
                        ignore_result=ignore_result,
                        retry=retry,
                        retry_policy=retry_policy,
                        add_to_parent=add_to_parent,
                    )
                )
            return sent[0]
        id_, nonce = self._ids.draw()
        steering = msgspec.structs.replace(steering, id=task_id or id_, nonce=nonce, ignore_result=ignore_result)
        if (request := current_request()) is not None:
            steering = request.on(steering)
        _check_size(steering.shown_name, len(code) + len(args))
        self.save(packer, steering, retry, retry_policy)
        named = bool(code) and app.joined and self._is_kept(steering, code)
        body = pack_body(b"" if named else code, args)
        message = Message.sign(steering, body, app.signer)
        _check_steering(steering, len(message.header))
        mine = watched_by(steering.id, steering, app.session)
        watched = app.watcher.watch(mine)
        outgoing = Outgoing(
            steering.queue,
            steering.id,
            message.header,
            body,
            int(steering.eta * 1000),
            steering.nonce,
            sign_record(pending_facts(steering), b"", app.signer),
            priority=steering.priority,
            code=steering.code if named else "",
            fresh=task_id is None,
        )
        pipeline: Pipeline | None = getattr(self._pipelines, "current", None)
        if pipeline is not None:
            pipeline.add(outgoing, mine)
            return self._sent(steering, watched, request if add_to_parent else None)
        try:
            verdict = self.publish([outgoing], retry, retry_policy)[0]
        except (SendFailed, SendUncertain):
            app.watcher.unwatch(mine)
            raise
        if verdict == LIVE:
            app.watcher.unwatch(mine)
            raise SendFailed(f"a task {steering.id} is queued or running already; wait for it, or use another id")
        return self._sent(steering, watched, request if add_to_parent else None)

    def _sent(self, steering: Steering, watched: WatchedTask, parent: Request | None) -> results.AsyncResult:
        """Return the handle of a call that was sent, once monitors and the task that sent it know."""
        app = self.app
        if app.conf.task_send_sent_event:
            self._tell_sent((steering,))
        if parent is not None:
            parent.add_child(steering.id)
        return results.AsyncResult(steering.id, app, watched=watched)

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """Send what this thread calls in a `with` block while it goes on; confirmed together when the block ends.

        A call returns at once with its handle, which may be waited for in the block too. Maps are sent as ever.

        Raises:
            SendFailed: at the end of the block: some calls were not sent. Their handles raise `UnknownTask`.
            SendUncertain: the broker went away before it answered; of some calls it isn't known.
        """
        app = self.app
        outer = getattr(self._pipelines, "current", None)
        if outer is not None:
            yield outer  # the outer block confirms
            return
        with Pipeline(lambda messages: self.publish(messages, None, None), app.watcher.unwatch) as made:
            self._pipelines.current = made
            try:
                yield made
            finally:
                self._pipelines.current = None

    def send_map(
        self,
        steering: Steering,
        code: bytes,
        calls: Sequence[bytes],
        packer: Packer | None = None,
        *,
        watched_by: Callable[[Steering, str], WatchedMap] = WatchedMap,
        shown: bool = True,
    ) -> results.MapResult:
        """Send one task for each packed tuple of arguments; what they share travels once.

        Args:
            steering: that of all, but for their indexes.
            code: what `steering.code` is the digest of.
            calls: packed arguments.
            packer: holds what code and arguments name of large data.
            watched_by: makes what is told of their ends, from that steering and the session.
            shown: let a notebook show it.
        """
        app = self.app
        for index, args in enumerate(calls):
            _check_size(f"{steering.shown_name}, call {index}", len(args))
        if not app.spread.is_one(app.conf, steering.queue):
            first, *others = (
                msgspec.structs.replace(steering, queue=queue) for queue in self.queues_of(steering.queue)
            )
            sent = self.send_map(first, code, calls, packer, watched_by=watched_by, shown=shown)
            for copy in others:
                self.send_map(copy, code, calls, packer, shown=False)
            return sent
        id_, nonce = self._ids.draw()
        group = msgspec.structs.replace(steering, id=id_, nonce=nonce, size=len(calls))
        if (request := current_request()) is not None:
            group = request.on(group)
            request.add_child(group.id, len(calls))
        _check_steering(group, len(encode_steering(group)))
        watched = watched_by(group, app.session)
        self.save(packer, group)
        keep_s = max(app.conf.result_expires, LIVE_S) + max(0.0, group.eta - group.sent_at)
        app.backend.store_group(group.id, sign_group(group, code, app.signer), keep_s)
        app.watcher.watch_map(watched)
        due = int(group.eta * 1000)
        signer = app.signer
        announced = self._announced(group.member(index) for index in range(len(calls)))
        for start in range(0, len(calls), _MAP_CHUNK):
            outgoing = []
            for index, args in enumerate(calls[start : start + _MAP_CHUNK], start):
                message = Message.sign_call(group.id, index, args, signer)
                outgoing.append(
                    Outgoing(
                        group.queue,
                        message.id,
                        message.header,
                        args,
                        due,
                        priority=group.priority,
                        group=group.id,
                        index=index,
                    )
                )
            try:
                self.publish(outgoing, None, None)
            except (SendFailed, SendUncertain) as exc:
                app.watcher.unwatch_map(watched)
                if start:
                    exc.add_note(f"The first {start:,} calls of map {group.id} were sent, and run.")
                raise
        self._tell_sent((group.member(index) for index in range(len(calls))), announced)
        sent = results.MapResult(group.id, app=app, watched=watched)
        if shown and app.show is not None:
            app.show(sent)
        return sent

    def send_plan(self, plan: Plan) -> Any:
        """Send a canvas; see `App.send_canvas`."""
        app = self.app
        if len(plan.calls) == 1 and plan.shape.call == 0:
            call = plan.calls[0].signature
            return call.type.apply_async(call.args, call.kwargs, **call.options)
        if plan.joins and not app.joined and scheme_of(app.link.broker_url) not in AMQP_SCHEMES:
            raise ImproperlyConfigured(
                "a chord needs one Redis as broker and backend, or RabbitMQ with Redis as its backend: where it "
                "ends is decided in the step that writes the records of its header"
            )
        packer = Packer()
        graph = plans.pack(plan, app, packer)
        drawn = draw(graph)
        for queue in {kind.queue for kind in drawn.kinds}:
            app.broker.check_queue(queue)
        for kind, text in zip(drawn.kinds, graph.kinds, strict=True):
            _check_steering(kind, len(text) + max(len(node.id) for node in graph.nodes))
        made: dict[int, results.AsyncResult] = {}
        sent = plans.handle(plan.shape, graph, app, made)
        if not plan.calls:
            return sent
        _note_children(graph.id_of(head) for head in plan.heads)
        first = drawn.steering(Step(graph.id, 0, 0, graph.sent_at, 0.0))
        self.save(packer, first)
        text = sign_graph(graph, app.signer)
        _check_size("this canvas", len(text))
        app.backend.store_graph(graph.id, text, max(app.conf.result_expires, LIVE_S))
        self._settle_ids(drawn)
        watched = [
            WatchedTask(graph.id_of(call), drawn.steering(Step(graph.id, call, 0, graph.sent_at, 0.0)), app.session)
            for call in plan.shape.calls
        ]
        for number, task in zip(plan.shape.calls, watched, strict=True):
            made[number].follow(app.watcher.watch(task))
        heads = [drawn.steering(Step(graph.id, head, 0, graph.sent_at, 0.0)) for head in plan.heads]
        announced = self._announced(heads)
        headers = {told.id: _checked_headers(told.steering) for told in announced}
        outgoing = [
            drawn.step(head, Given("nothing"), time.time(), app.signer, headers.get(graph.id_of(head)))
            for head in plan.heads
        ]
        try:
            for start in range(0, len(outgoing), _MAP_CHUNK):
                self.publish(outgoing[start : start + _MAP_CHUNK], None, None)
        except (SendFailed, SendUncertain):
            for task in watched:
                app.watcher.unwatch(task)
            raise
        self._tell_sent(heads, announced)
        return sent

    def _settle_ids(self, drawn: Drawn) -> None:
        """Let ids that a canvas brings along name new tasks, whatever earlier ones of these ids came to.

        Raises:
            SendFailed: one of them is queued or runs.
        """
        graph, app = drawn.graph, self.app
        calls = {
            node.id: drawn.steering(Step(graph.id, number, 0, graph.sent_at, 0.0))
            for number, node in enumerate(graph.nodes)
            if node.id
        }
        ended = []
        for id_, text in zip(calls, app.backend.load(list(calls)) if calls else (), strict=True):
            if text is None:
                continue
            with suppress(BadMessage):  # what nobody we know has signed names no task
                if open_fact(text, app.signer, kind="record").facts.state not in states.READY_STATES:
                    raise SendFailed(f"a task {id_} is queued or running already; wait for it, or use another id")
            ended.append(id_)
        if ended:
            app.backend.forget(ended)
        app.watcher.expect(calls)

    def queues_of(self, name: str) -> list[str]:
        """Return the queues that a name stands for, as they are listened to now."""
        app = self.app
        return copies_of(app.spread.parts(app.conf, name), listened_queues(app.backend, app.signer), name)

    def _is_kept(self, steering: Steering, code: bytes) -> bool:
        """Tell whether a call finds its code in the backend; while that is away, it brings it along."""
        try:
            return self.app.codes.is_kept(steering.code, code, steering.expires)
        except BackendUnavailable:
            return False

    def save(
        self,
        packer: Packer | None,
        steering: Steering,
        retry: bool | None = None,
        policy: Mapping[str, float] | None = None,
    ) -> None:
        """Put large data where workers find it, for as long as the task may start, and a day to run."""
        if packer is not None and packer.blobs:
            self._trying(lambda: self._put(packer, steering), retry, policy)

    def _put(self, packer: Packer, steering: Steering) -> None:
        try:
            self.app.blobs.save(packer.blobs, steering.expires + 86_400.0, packer.spilled)
        except BlobNotStored as exc:
            raise BlobNotStored(f"Not sent: {steering.shown_name}: {exc}") from exc
        except BackendUnavailable as exc:
            raise SendFailed(f"Not sent: {steering.shown_name}: its large data can't be stored: {exc}") from exc

    def publish(
        self, messages: Sequence[Outgoing], retry: bool | None, policy: Mapping[str, float] | None
    ) -> list[int]:
        """Publish, again and again where that may help: what arrived before is recognised by id and nonce."""
        waiting = messages

        def publish() -> list[int]:
            nonlocal waiting
            try:
                return self.app.broker.publish(waiting)
            except (SendFailed, SendUncertain):
                waiting = [msgspec.structs.replace(message, fresh=False) for message in messages]
                raise

        verdicts = self._trying(publish, retry, policy)
        return self._sent_with_code(waiting, verdicts) if CODE_GONE in verdicts else verdicts

    def _trying(self, send: Callable[[], T], retry: bool | None, policy: Mapping[str, float] | None) -> T:
        """Do what needs a server, again and again where that may help."""
        conf = self.app.conf
        policy = {**conf.task_publish_retry_policy, **(policy or {})}
        repeats = conf.task_publish_retry if retry is None else retry
        limit: float | None = policy["max_retries"] if repeats else 0  # None: for as long as it takes
        pause = policy["interval_start"]
        for attempt in itertools.count():
            try:
                return send()
            except (SendFailed, SendUncertain) as exc:
                if isinstance(exc, PayloadTooLarge) or (limit is not None and attempt >= limit):
                    raise
                self._revive()
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, hides nothing
                pause = min(pause + policy["interval_step"], policy["interval_max"])
        raise AssertionError("unreachable")

    def _sent_with_code(self, messages: Sequence[Outgoing], verdicts: list[int]) -> list[int]:
        """Send those messages again whose code the backend has lost, once it is there again."""
        app = self.app
        gone = [n for n, verdict in enumerate(verdicts) if verdict == CODE_GONE]
        app.codes.keep_again({messages[n].code for n in gone})
        again = [msgspec.structs.replace(messages[n], fresh=False) for n in gone]
        for n, verdict in zip(gone, app.broker.publish(again), strict=True):
            if verdict == CODE_GONE:
                raise SendFailed(
                    f"the code of task {messages[n].id} is lost again and again; is the server's memory full?"
                )
            verdicts[n] = verdict
        return verdicts

    def _revive(self) -> None:
        """Start the embedded server again if it has ended; a server of the user's is not ours to start."""
        if self.app.link.embedded:
            embedded_link(work_follows=self.app.work_follows)

    def _announced(self, calls: Iterable[Steering]) -> list[Publication]:
        """Tell that calls are about to be sent; the calls of a map share their frame, so nothing can be added there."""
        if not signals.anybody(signals.OF_CLIENT):
            return []
        from nbqueue.publishing import Publication  # few clients tell anything

        told = [Publication(steering, ((), {}), steering.id) for steering in calls]
        for publication in told:
            publication.begin()
        return told

    def _tell_sent(self, calls: Iterable[Steering], announced: Iterable[Publication] = ()) -> None:
        """Tell whoever watches that calls were sent."""
        app = self.app
        for publication in announced:
            publication.end()
        if app.conf.task_send_sent_event:
            from nbqueue.publishing import tell_sent  # as above

            tell_sent(app.emitter, calls)


def _check_size(name: str, size_bytes: int) -> None:
    if size_bytes > MAX_MESSAGE_BYTES:
        raise PayloadTooLarge(
            f"Not sent: {name} has {size_bytes / 1e6:,.0f} MB of code and data, a message carries "
            f"{MAX_MESSAGE_BYTES / 1e6:,.0f} beside what travels as large data; send fewer parts at once"
        )


def _check_steering(steering: Steering, size_bytes: int) -> None:
    if size_bytes > MAX_STEERING_BYTES:
        raise PayloadTooLarge(
            f"Not sent: name, id, queue and label of {steering.shown_name[:80]} have {size_bytes:,} bytes together, "
            f"{MAX_STEERING_BYTES:,} is the most; shorten them"
        )


def _checked_headers(steering: Steering) -> Mapping[str, Any]:
    """Return the headers of a call to which receivers may have added some."""
    _check_steering(steering, len(encode_steering(steering)))
    return steering.headers


def _note_children(ids: Iterable[str]) -> None:
    """Let the task that runs here, if one does, know what it has sent."""
    if (request := current_request()) is not None:
        for id_ in ids:
            request.add_child(id_)
