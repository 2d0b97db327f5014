"""Settings as users write them, with queues that are bound to exchanges; named by CELERY_CONFIG_MODULE."""

from kombu import Exchange, Queue
from kombu.common import Broadcast

news = Exchange("news", type="fanout")
media = Exchange("media", type="topic")

task_queues = (
    Queue("nbqueue"),
    Queue("video", media, routing_key="media.video.#"),
    Queue("audio", media, routing_key="media.audio.#"),
    Queue("paper", news),
    Queue("radio", news),
    Broadcast("everybody"),
)
task_routes = {
    "tests.*.reload": {"queue": "everybody"},
    "tests.*.encode": {"exchange": "media", "routing_key": "media.video.x"},
}
worker_direct = True
