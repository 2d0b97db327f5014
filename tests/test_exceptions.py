from __future__ import annotations

import pickle

import pytest

import nbqueue
from nbqueue import exceptions


@pytest.mark.parametrize("name", exceptions.__all__)
def test_exception_survives_pickling(name: str) -> None:
    made = getattr(exceptions, name)("what", "more")
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is type(made)
    assert str(again) == str(made)
    assert again.args == made.args
    assert isinstance(again, exceptions.NBQueueError | SystemExit)


@pytest.mark.parametrize("name", exceptions.__all__)
def test_exception_stands_in_the_tree_and_says_what_it_is(name: str) -> None:
    assert name in (exceptions.__doc__ or "")
    assert getattr(exceptions, name).__doc__


def test_names_of_celerys_catch_what_is_raised_here() -> None:
    assert issubclass(exceptions.ResultExpired, exceptions.CeleryError)
    for error in (exceptions.Retry, exceptions.Ignore, exceptions.Reject):
        assert issubclass(error, exceptions.TaskPredicate)
    assert exceptions.OperationalError is nbqueue.Task.OperationalError
    for worker_ends in (exceptions.WorkerShutdown, exceptions.SystemTerminate):
        assert not issubclass(worker_ends, Exception), "a broad except must not hold it up"


def test_version_is_had_by_its_parts() -> None:
    assert nbqueue.version_info is nbqueue.VERSION
    assert nbqueue.__version__.startswith(".".join(map(str, nbqueue.version_info[:3])))
    assert nbqueue.version_info >= (0, 1)


def test_public_names_are_sorted_and_can_all_be_had() -> None:
    assert nbqueue.__all__ == sorted(nbqueue.__all__)
    for name in nbqueue.__all__:
        assert getattr(nbqueue, name) is not None
    assert nbqueue.Celery is nbqueue.App
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nbqueue.no_such_name


def test_public_task_is_the_decorator_whatever_was_imported_before() -> None:
    assert callable(nbqueue.task)
    assert nbqueue.task.__name__ == "task"
