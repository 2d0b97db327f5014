"""Pydantic models as arguments and values of tasks: `@app.task(pydantic=True)`.

Source: Celery 5.7, `celery.app.base.pydantic_wrapper`, for what is validated and dumped.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from nbqueue.current import current_app
from nbqueue.exceptions import ImproperlyConfigured

OPTIONS: Final = ("pydantic", "pydantic_strict", "pydantic_context", "pydantic_dump_kwargs")
Kinds = dict[
    str, tuple[type, bool]
]  # of parameters, and of `return`: a class, and whether None may stand for one of it


class Modelled:
    """A function whose arguments are made models as they are annotated, and whose value is dumped if it is one.

    Args:
        run: the function.
        strict: nothing is converted.
        context: for validators; `celery_app` and `celery_task_name` are in it besides.
        dump_kwargs: of `model_dump`, over `mode="json"`.
        name: of the task.
        kinds: classes that it is annotated with; looked for when they are first needed if None, as names may be
            defined below the function. They travel along: what only annotations name doesn't travel with code.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        strict: bool = False,
        context: Mapping[str, Any] | None = None,
        dump_kwargs: Mapping[str, Any] | None = None,
        name: str = "",
        kinds: Kinds | None = None,
    ) -> None:
        functools.update_wrapper(self, run, updated=())
        self.run = run
        self.strict = strict
        self.context = dict(context or {})
        self.dump_kwargs = {"mode": "json", **(dump_kwargs or {})}
        self.name = name
        self.app: Any = None  # the current one
        self._kinds = kinds
        # A function's lines are found by these, wherever somebody asks for them.
        self.__code__ = getattr(run, "__code__", None)
        self.__globals__ = getattr(run, "__globals__", {})

    def __reduce__(self) -> Any:
        return Modelled, (self.run, self.strict, self.context, self.dump_kwargs, self.name, self.kinds)

    def __repr__(self) -> str:
        return f"<{self.run!r} with models>"

    @property
    def kinds(self) -> Kinds:
        """Return the classes that it is annotated with."""
        if self._kinds is None:
            self._kinds = _kinds(self.run)
        return self._kinds

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """Return its parameters."""
        return inspect.signature(self.run)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now.

        Raises:
            TypeError: the arguments don't fit.
            pydantic.ValidationError: one of them is no such model.
        """
        bound = self.signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if model := self._model(name, value):
                bound.arguments[name] = self._validated(model, value)
        value = self.run(*bound.args, **bound.kwargs)
        return self._awaited(value) if inspect.iscoroutine(value) else self._dumped(value)

    def dump(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, bind: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments for a form that has no models: those that are made the same again from it are dumped.

        Args:
            args: by position.
            kwargs: by name.
            bind: its first parameter is the task.
        """
        named = dict(kwargs)
        if not self.kinds or not any(_is_model(value) for value in (*args, *named.values())):
            return args, named
        parameters = list(self.signature.parameters.values())[bind:]
        in_order = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        by_name = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        names = in_order[: len(args)] + [""] * (len(args) - len(in_order))
        return (
            tuple(self._dumped_argument(name, value) for name, value in zip(names, args, strict=True)),
            {name: self._dumped_argument(name if name in by_name else "", value) for name, value in named.items()},
        )

    def _model(self, name: str, value: Any) -> Any:
        """Return the model that a parameter's value is to be of; None if any other will do."""
        kind, optional = self.kinds.get(name, (object, False))
        if not issubclass(kind, _base_model()) or (optional and value is None):
            return None
        return kind

    def _validated(self, model: Any, value: Any) -> Any:
        app = current_app() if self.app is None else self.app
        context = {**self.context, "celery_app": app, "celery_task_name": self.name}
        return model.model_validate(value, strict=self.strict, context=context)

    def _dumped(self, value: Any) -> Any:
        kind, _ = self.kinds.get("return", (None, False))
        wanted = kind is not None and isinstance(value, kind) and _is_model(value)
        return value.model_dump(**self.dump_kwargs) if wanted else value

    async def _awaited(self, coming: Any) -> Any:
        return self._dumped(await coming)

    def _dumped_argument(self, name: str, value: Any) -> Any:
        if not _is_model(value) or hasattr(type(value), "__json__") or (model := self._model(name, value)) is None:
            return value
        try:
            dumped = value.model_dump(**self.dump_kwargs)
            if self._validated(model, dumped) == value:  # a model of a derived class is not
                return dumped
        except Exception:  # noqa: BLE001 - validators may need what only workers have: the serializer says what it can't take
            return value
        return value


def modelled(run: Callable[..., Any], options: Mapping[str, Any]) -> Modelled:
    """Return a function with the models of its annotations; options as `OPTIONS`.

    Raises:
        ImproperlyConfigured: Pydantic isn't here.
    """
    try:
        _base_model()
    except ModuleNotFoundError as exc:
        raise ImproperlyConfigured(
            f"pydantic=True of {run.__qualname__} needs the package pydantic: pip install pydantic"
        ) from exc
    given = {name.removeprefix("pydantic_"): value for name, value in options.items() if name != "pydantic"}
    return Modelled(run, **given)


def _base_model() -> Any:
    return importlib.import_module("pydantic").BaseModel


def _is_model(value: Any) -> bool:
    return isinstance(value, _base_model())


def _kinds(run: Callable[..., Any]) -> Kinds:
    """Return the classes among a function's annotations; those whose names nobody knows at run time are left out."""
    function = inspect.unwrap(run)
    found: Kinds = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        with contextlib.suppress(Exception):  # one that is imported for type checkers alone, as a rule
            alone = types.SimpleNamespace(__annotations__={name: annotation})
            hint = typing.get_type_hints(alone, getattr(function, "__globals__", {}))[name]
            kind = _optional(hint)
            if inspect.isclass(kind or hint):
                found[name] = kind or hint, kind is not None
    return found


def _optional(hint: Any) -> Any:
    """Return X of an annotation `X | None`; None for any other."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    first, *others = typing.get_args(hint)
    if len(others) != 1 or types.NoneType not in (first, *others):
        return None
    return others[0] if first is types.NoneType else first
