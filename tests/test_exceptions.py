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
    assert isinstance(again, exceptions.NBQueueError)


@pytest.mark.parametrize("name", exceptions.__all__)
def test_exception_stands_in_the_tree_and_says_what_it_is(name: str) -> None:
    assert name in (exceptions.__doc__ or "")
    assert getattr(exceptions, name).__doc__


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
