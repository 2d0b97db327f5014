"""`Pidbox`: a worker's answers to Celery's own programs, such as `celery inspect` and Flower.

Celery broadcasts commands on an exchange of the broker's, signed by nobody. So workers answer those that change
nothing, and follow the others only if they are told to. A thread listens: without kombu on Redis,
on RabbitMQ with a queue of its own, as Celery's workers do.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import queue
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import redis

from nbqueue.config import AMQP_SCHEMES, mask, nodes_of, scheme_of
from nbqueue.control import matches
from nbqueue.exceptions import BadMessage
from nbqueue.stock import bindings_key, bound_queues, envelope, fanout_topic, kombu_connection, opened
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


class Reply(Protocol):
    """Sends an answer to whoever waits for it."""

    def __call__(self, answer: Any, to: Mapping[str, Any], ticket: Any, /) -> None:
        """Send it to an exchange and routing key, with the ticket of the question."""


class Pidbox:
    """Listens in a thread of its own until it is stopped.

    Args:
        url: of the broker.
        hostname: of the worker.
        client_name: what the server shows of the connection.
        exchange: what Celery calls the place of commands.
        ask: runs a command.
    """

    def __init__(self, url: str, hostname: str, client_name: str, exchange: str, ask: Ask) -> None:
        self.url = url
        self._exchange = exchange
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
        """Read and answer without kombu: a monitor waits a second, and loading it may take that where much runs."""
        client = connect(self.url, name=self._client_name, timeout_s=ANSWER_S)
        database = int(client.connection_pool.connection_kwargs.get("db") or 0)
        subscription = client.pubsub(ignore_subscribe_messages=True)
        try:
            subscription.subscribe(fanout_topic(f"{self._exchange}.pidbox", "", database))
            self._pause_s = FIRST_PAUSE_S
            while not self._stopped.is_set():
                try:
                    message = subscription.get_message(timeout=LOOK_S)
                except redis.TimeoutError:
                    continue
                if message is None or len(message["data"]) > MAX_BYTES:
                    continue
                try:
                    self._follow(opened(message["data"]), functools.partial(_reply_redis, client))
                except (BadMessage, redis.ResponseError) as exc:
                    logger.debug("a command can't be followed: %s", exc)
        finally:
            subscription.close()
            client.close()

    # ---- RabbitMQ

    def _listen_amqp(self) -> None:
        from kombu.pidbox import Mailbox  # noqa: PLC0415 - as in `kombu_connection`

        mailbox = Mailbox(
            self._exchange,
            type="fanout",
            accept=["json"],
            serializer="json",
            queue_expires=QUEUE_EXPIRES_S,
            queue_exclusive=False,
            reply_queue_expires=QUEUE_EXPIRES_S,
        )
        with kombu_connection(next(self._nodes)) as connection:
            node = mailbox(connection).Node(self.hostname, channel=connection.channel())

            def reply(answer: Any, to: Mapping[str, Any], ticket: Any) -> None:
                node.reply(answer, to["exchange"], to["routing_key"], ticket)

            node.listen(callback=lambda body, _message: self._follow(body, reply))
            self._pause_s = FIRST_PAUSE_S
            while not self._stopped.is_set():
                try:
                    connection.drain_events(timeout=LOOK_S)
                except TimeoutError:
                    connection.heartbeat_check()

    # ---- both

    def _follow(self, command: Any, reply: Reply) -> None:
        """Have a command run that is for this worker, and send what it answers; leave alone what is none."""
        try:
            name, arguments = command["method"], command.get("arguments") or {}
            chosen, pattern, matcher = (command.get(field) for field in ("destination", "pattern", "matcher"))
            if chosen:
                wanted = self.hostname in ([chosen] if isinstance(chosen, str) else chosen)
            else:
                wanted = not (pattern and matcher) or matches(self.hostname, pattern, matcher)
            if not wanted:
                return
            to, ticket = command.get("reply_to"), command.get("ticket")
            answer = self._answer(str(name), {str(key): value for key, value in arguments.items()})
            if to:
                reply({self.hostname: answer}, to, ticket)
        except (TypeError, ValueError, KeyError, AttributeError) as exc:
            logger.debug("a command can't be understood: %s", exc)

    def _answer(self, command: str, arguments: dict[str, Any]) -> Any:
        """Return what the supervisor answers, or that it is busy with something else."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ask(command, arguments, answers.put)
        try:
            return answers.get(timeout=ANSWER_S)
        except queue.Empty:
            return {"error": f"{self.hostname} hasn't answered within {ANSWER_S:g} s"}


def _reply_redis(client: redis.Redis, answer: Any, to: Mapping[str, Any], ticket: Any) -> None:
    """Put an answer where kombu's client waits for it; nobody waits any more if its queue isn't bound."""
    exchange, key = str(to["exchange"]), str(to["routing_key"])
    message = envelope(json.dumps(answer, default=repr).encode(), exchange, key, {"ticket": ticket, "clock": 0})
    with client.pipeline(transaction=False) as pipe:
        for name in bound_queues(client.smembers(bindings_key(exchange)), key):
            pipe.lpush(name, message)
            pipe.expire(name, int(QUEUE_EXPIRES_S))
        pipe.execute()
