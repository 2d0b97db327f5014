"""The settings that Celery has, in both generations of their names. Loaded when a name is looked up that is no field.

Source: Celery's user guide, "Configuration and defaults" (5.7), and its table of new and old names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

# By the first word of their names; "" has those without one.
_NAMES: Final = {
    "": "accept_content result_accept_content enable_utc imports include timezone",
    "arangodb": "backend_settings",
    "azureblockblob": "container_name retry_initial_backoff_sec retry_increment_base retry_max_attempts base_path "
    "connection_timeout read_timeout",
    "beat": "schedule scheduler schedule_filename sync_every max_loop_interval cron_starting_deadline "
    "enable_remote_control remote_control_max_tick_age",
    "broker": "url read_url write_url transport transport_options connection_timeout connection_retry "
    "connection_retry_on_startup connection_max_retries channel_error_retry failover_strategy heartbeat "
    "heartbeat_checkrate login_method native_delayed_delivery_queue_type pool_limit pool_acquire_timeout use_ssl host "
    "port user password vhost",
    "cache": "backend backend_options",
    "cassandra": "entry_ttl keyspace port read_consistency servers bundle_path table write_consistency auth_provider "
    "auth_kwargs options",
    "control": "queue_ttl queue_expires queue_exclusive queue_durable exchange",
    "cosmosdbsql": "database_name collection_name consistency_level max_retry_attempts max_retry_wait_time",
    "couchbase": "backend_settings",
    "database": "url engine_options engine_callback short_lived_sessions table_schemas table_names "
    "create_tables_at_setup",
    "elasticsearch": "retry_on_timeout max_retries timeout save_meta_as_text",
    "event": "queue_expires queue_ttl queue_prefix queue_exclusive queue_durable serializer exchange",
    "gcs": "bucket project base_path ttl",
    "mongodb": "backend_settings",
    "redis": "backend_use_ssl db host max_connections username password port socket_timeout socket_connect_timeout "
    "retry_on_timeout socket_keepalive",
    "result": "backend cache_max compression exchange exchange_type expires chord_expires failure_expires persistent "
    "extended serializer backend_transport_options chord_retry_interval chord_join_timeout "
    "backend_max_sleep_between_retries_ms backend_max_retries backend_base_sleep_between_retries_ms "
    "backend_always_retry",
    "s3": "access_key_id secret_access_key bucket base_path endpoint_url region",
    "security": "certificate cert_store key key_password digest",
    "task": "acks_late acks_on_failure_or_timeout acks_on_failure acks_on_timeout always_eager annotations compression "
    "create_missing_queues create_missing_queue_type create_missing_queue_exchange_type inherit_parent_priority "
    "default_delivery_mode default_queue default_queue_type default_exchange default_exchange_type default_routing_key "
    "default_rate_limit default_priority eager_propagates ignore_result store_eager_result protocol publish_retry "
    "publish_retry_policy queues queue_max_priority reject_on_worker_lost retry_on_worker_lost remote_tracebacks "
    "repr_maxlevels routes send_sent_event serializer soft_time_limit time_limit store_errors_even_if_ignored "
    "track_started allow_error_cb_on_chord_header",
    "worker": "agent autoscaler cancel_long_running_tasks_on_connection_loss soft_shutdown_timeout "
    "enable_soft_shutdown_on_idle concurrency consumer direct disable_rate_limits deduplicate_successful_tasks "
    "enable_remote_control hijack_root_logger log_color log_datefmt log_format lost_wait max_memory_per_child "
    "max_tasks_per_child pool pool_putlocks pool_restarts pool_start_method proc_alive_timeout prefetch_multiplier "
    "eta_task_limit enable_prefetch_count_reduction disable_prefetch redirect_stdouts redirect_stdouts_level "
    "send_task_events state_db task_log_datefmt task_log_format timer timer_precision detect_quorum_queues",
}
KNOWN: Final = frozenset(f"{word}_{name}" if word else name for word, names in _NAMES.items() for name in names.split())

# Old names that no rule leads to.
_ODD: Final = {
    "CELERY_TASK_RESULT_EXPIRES": "result_expires",
    "CELERY_MAX_CACHED_RESULTS": "result_cache_max",
    "CELERY_MESSAGE_COMPRESSION": "task_compression",
    "CELERY_EAGER_PROPAGATES_EXCEPTIONS": "task_eager_propagates",
    "CELERY_SEND_TASK_SENT_EVENT": "task_send_sent_event",
    "CELERY_SEND_EVENTS": "worker_send_task_events",
    "CELERY_SEND_TASK_EVENTS": "worker_send_task_events",
    "CELERY_DISABLE_RATE_LIMITS": "worker_disable_rate_limits",
    "CELERY_ENABLE_REMOTE_CONTROL": "worker_enable_remote_control",
    "CELERY_REDIRECT_STDOUTS": "worker_redirect_stdouts",
    "CELERY_REDIRECT_STDOUTS_LEVEL": "worker_redirect_stdouts_level",
    "CELERYD_WORKER_LOST_WAIT": "worker_lost_wait",
    "CELERYD_TASK_TIME_LIMIT": "task_time_limit",
    "CELERYD_TASK_SOFT_TIME_LIMIT": "task_soft_time_limit",
    "CELERYD_TIME_LIMIT": "task_time_limit",
    "CELERYD_SOFT_TIME_LIMIT": "task_soft_time_limit",
    "CELERY_RESULT_DBURI": "database_url",
    "CELERY_RESULT_ENGINE_OPTIONS": "database_engine_options",
    "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS": "database_short_lived_sessions",
    "CELERY_RESULT_DB_TABLENAMES": "database_table_names",
    "CELERY_RESULT_DB_TABLE_NAMES": "database_table_names",
}
# Old names begin with these words, in place of the new ones' beginnings; the first that leads to a setting wins.
_OLD_BEGINNINGS: Final = (("CELERYBEAT_", "beat_"), ("CELERYD_", "worker_"), ("CELERY_", ""), ("CELERY_", "task_"))
_KEEP_THEIR_NAME: Final = ("broker_",)
_ODD_BACK: Final = {new: old for old, new in reversed(_ODD.items())}


def new_name(name: str, fields: Iterable[str], namespace: str = "") -> str | None:
    """Return the lower-case name of a setting; None if there is no such setting.

    >>> new_name("CELERYD_CONCURRENCY", ()), new_name("BROKER_URL", ()), new_name("CELERY_ROUTES", ())
    ('worker_concurrency', 'broker_url', 'task_routes')

    Args:
        name: of either generation.
        fields: settings that Celery doesn't have.
        namespace: what the name begins with, and an underscore, beside the setting's own.
    """
    known = KNOWN.union(fields)
    if namespace and name.startswith(f"{namespace}_"):
        rest = name.removeprefix(f"{namespace}_").lower()
        if rest in known:
            return rest
    if name in known:
        return name
    if name in _ODD:
        return _ODD[name]
    if not name.isupper():
        return None
    for old, new in (*_OLD_BEGINNINGS, ("", "")):
        found = new + name.removeprefix(old).lower()
        if name.startswith(old) and found in known:
            return found
    return None


def old_name(name: str) -> str:
    """Return the upper-case name of a setting.

    >>> old_name("task_serializer"), old_name("worker_concurrency"), old_name("broker_url")
    ('CELERY_TASK_SERIALIZER', 'CELERYD_CONCURRENCY', 'BROKER_URL')
    """
    if name in _ODD_BACK:
        return _ODD_BACK[name]
    if name.startswith(_KEEP_THEIR_NAME):
        return name.upper()
    for old, new in _OLD_BEGINNINGS[:2]:
        if name.startswith(new):
            return old + name.removeprefix(new).upper()
    return f"CELERY_{name.upper()}"


def nearest(name: str, fields: Iterable[str], namespace: str = "", cutoff: float = 0.6) -> str | None:
    """Return the setting that a wrong name may have meant, in the generation of that name."""
    known = KNOWN.union(fields)
    if namespace:
        names = {f"{namespace}_{known_name}".upper(): None for known_name in known}
    elif name.isupper():
        short = (known_name.removeprefix("task_") for known_name in known)
        names = dict.fromkeys([*map(old_name, known), *(f"CELERY_{text}".upper() for text in short)])
    else:
        names = dict.fromkeys(known)
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def is_meant(name: str, namespace: str = "") -> bool:
    """Tell whether a name in a module of settings is to be one: by how it begins."""
    if namespace:
        return name.startswith(f"{namespace}_")
    if name.isupper():
        return name.startswith(("CELERY_", "CELERYD_", "CELERYBEAT_", "BROKER_"))
    return name.partition("_")[0] in ("task", "worker", "result", "broker", "beat") and "_" in name
