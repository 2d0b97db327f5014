"""Results, where Celery has them. `handles.py` has those of one task, `groups.py` those of several."""

from nbqueue.groups import GroupResult, Groups, MapResult, ResultSet, result_from_tuple
from nbqueue.handles import AsyncResult, EagerResult
from nbqueue.waits import allow_join_result, denied_join_result

__all__ = [
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "Groups",
    "MapResult",
    "ResultSet",
    "allow_join_result",
    "denied_join_result",
    "result_from_tuple",
]
