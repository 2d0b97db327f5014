"""`Pidbox`: a worker's answers to Celery's own programs, such as `celery inspect` and Flower.

Celery broadcasts commands on an exchange of the broker's, signed by nobody. So workers answer those that change
nothing, and follow the others only if they are told to. A thread listens: on Redis with a plain subscription, and kombu
is loaded when the first command comes; on RabbitMQ with a queue of its own, as Celery's workers do.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import queue
import random
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import redis

from nbqueue.config import AMQP_SCHEMES, mask, nodes_of, scheme_of
from nbqueue.stock import CONTROL_EXCHANGE, fanout_topic, kombu_connection
from nbqueue.wire import connect

ANSWER_S: Final = 5.0  # how long the supervisor may take over a command
LOOK_S: Final = 1.0  # between two looks whether to go on
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 30.0
QUEUE_EXPIRES_S: Final = 10.0
MAX_BYTES: Final = 1 << 20  # of a command

logger = logging.getLogger(__name__)


class Ask(Protocol):
    """Hands a command to the supervisor's loop, from another thread."""

    def __call__(self, command: str, arguments: dict[str, Any], tell: Callable[[Any], None], /) -> None:
        """Have it run, and its answer given to `tell`."""


class Pidbox:
    """Listens in a thread of its own until it is stopped.

    Args:
        url: of the broker.
        hostname: of the worker.
        client_name: what the server shows of the connection.
        ask: runs a command.
    """

    def __init__(self, url: str, hostname: str, client_name: str, ask: Ask) -> None:
        self.url = url
        self.hostname = hostname
        self._client_name = client_name
        self._nodes = itertools.cycle(nodes_of(url))
        self._ask = ask
        self._pause_s = FIRST_PAUSE_S
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nbqueue pidbox", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; the thread ends within a second or so."""
        self._stopped.set()

    def _run(self) -> None:
        listen = self._listen_amqp if scheme_of(self.url) in AMQP_SCHEMES else self._listen_redis
        while not self._stopped.is_set():
            try:
                listen()
            except Exception as exc:  # noqa: BLE001 - two libraries have very many ways to say that a server is away
                level = logging.INFO if self._pause_s == FIRST_PAUSE_S else logging.DEBUG  # said once an outage
                logger.log(level, "Celery's commands can't be listened to at %s for now: %s", mask(self.url), exc)
            self._stopped.wait(self._pause_s * random.uniform(0.7, 1.0))  # noqa: S311 - spreads workers
            self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)

    # ---- Redis

    def _listen_redis(self) -> None:
        """Wait for commands with what is loaded already."""
        client = connect(self.url, name=self._client_name, timeout_s=ANSWER_S)
        database = int(client.connection_pool.connection_kwargs.get("db") or 0)
        subscription = client.pubsub(ignore_subscribe_messages=True)
        connection: Any = None
        node: Any = None
        try:
            subscription.subscribe(fanout_topic(f"{CONTROL_EXCHANGE}.pidbox", "", database))
            self._pause_s = FIRST_PAUSE_S
            while not self._stopped.is_set():
                try:
                    message = subscription.get_message(timeout=LOOK_S)
                except redis.TimeoutError:
                    continue
                if message is None or len(message["data"]) > MAX_BYTES:
                    continue
                if connection is None:
                    connection = kombu_connection(self.url)
                    node = self._node(connection)
                self._handle(node, node.channel.Message(json.loads(message["data"]), channel=node.channel))
        finally:
            subscription.close()
            client.close()
            if connection is not None:
                connection.release()

    # ---- RabbitMQ

    def _listen_amqp(self) -> None:
        with kombu_connection(next(self._nodes)) as connection:
            node = self._node(connection)
            node.listen(callback=lambda body, message: self._dispatch(node, body, message))
            self._pause_s = FIRST_PAUSE_S
            while not self._stopped.is_set():
                try:
                    connection.drain_events(timeout=LOOK_S)
                except TimeoutError:
                    connection.heartbeat_check()

    # ---- both

    def _node(self, connection: Any) -> Any:
        """Return kombu's end of the mailbox."""
        from kombu.pidbox import Mailbox  # noqa: PLC0415 - as in `kombu_connection`

        mailbox = Mailbox(
            CONTROL_EXCHANGE,
            type="fanout",
            accept=["json"],
            serializer="json",
            queue_expires=QUEUE_EXPIRES_S,
            queue_exclusive=False,
            reply_queue_expires=QUEUE_EXPIRES_S,
        )
        return mailbox(connection).Node(self.hostname, channel=connection.channel(), handlers=_Handlers(self._answer))

    def _handle(self, node: Any, message: Any) -> None:
        try:
            body = message.decode()
        except Exception as exc:  # noqa: BLE001 - anybody may write there, and of whatever kind
            logger.debug("a command can't be read: %s", exc)
            return
        self._dispatch(node, body, message)

    def _dispatch(self, node: Any, body: Any, message: Any) -> None:
        """Have kombu see whom a command is for, and answer."""
        if not isinstance(body, dict):
            return
        try:
            node.handle_message(body, message)
        except (TypeError, ValueError, KeyError, AttributeError) as exc:
            logger.debug("a command can't be understood: %s", exc)

    def _answer(self, command: str, /, **arguments: Any) -> Any:
        """Return what the supervisor answers.

        Raises:
            TimeoutError: it is busy with something else.
        """
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ask(command, arguments, answers.put)
        try:
            return answers.get(timeout=ANSWER_S)
        except queue.Empty:
            raise TimeoutError(f"{self.hostname} hasn't answered within {ANSWER_S:g} s") from None


class _Handlers(dict[str, Any]):
    """All commands there may be: the supervisor says what becomes of each."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        super().__init__()
        self._answer = answer

    def __missing__(self, command: str) -> Callable[..., Any]:
        run = functools.partial(self._answer, command)
        return lambda _state, **arguments: run(**arguments)
