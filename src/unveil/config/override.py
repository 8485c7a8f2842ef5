"""Choosing by name, and changing one leaf of a configuration by its dotted name."""

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from unveil.config.errors import UnveilError
from unveil.config.serialize import is_config, options

Config = TypeVar("Config")
Recipe = TypeVar("Recipe", bound=Callable[[], Any])


def recipe_named(name: str, recipes: Sequence[Recipe]) -> Recipe:
    """The recipe called `name`.

    Raises:
        UnveilError: there is none; the nearest name is given.
    """
    by_name = {recipe.__name__: recipe for recipe in recipes}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.4)
    hint = f"perhaps you meant {near[0]}" if near else f"there are {', '.join(by_name)}"
    raise UnveilError(f"no recipe is called {name!r}; {hint} (unveil recipes lists them all)")


def override(config: Config, assignments: Iterable[str]) -> Config:
    """`config` with leaves changed by "dotted.name=value".

    Raises:
        UnveilError: an unknown name (the nearest real one is given) or a value of another type.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UnveilError(f"--set {assignment}: write NAME=VALUE, as in --set optimization.global_batch_size=256")
        config = _replace(config, name.split("."), text, name)
    return config


def _replace(config: Any, path: list[str], text: str, full_name: str) -> Any:
    hints = typing.get_type_hints(type(config))
    if path[0] not in hints:
        prefix = full_name[: len(full_name) - len(".".join(path))]
        near = difflib.get_close_matches(path[0], hints, n=1, cutoff=0.3)
        hint = f"; perhaps you meant {prefix}{near[0]}" if near else f"; there are: {', '.join(hints)}"
        raise UnveilError(f"--set {full_name}: {type(config).__name__} has no {path[0]!r}{hint}")
    current = getattr(config, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(current):
            raise UnveilError(f"--set {full_name}: {path[0]} holds {current!r}, which has no {'.'.join(path[1:])!r}")
        new = _replace(current, path[1:], text, full_name)
    else:
        new = _parse(hints[path[0]], text, full_name)
    return dataclasses.replace(config, **{path[0]: new})


def _parse(hint: Any, text: str, name: str) -> Any:
    choices = options(hint)
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    for option in choices:
        if typing.get_origin(option) is tuple:
            inner = typing.get_args(option)[0]
            return tuple(_parse(inner, item.strip(), name) for item in text.strip("()[]").split(",") if item.strip())
        if typing.get_origin(option) is typing.Literal and text in typing.get_args(option):
            return text
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if option in (int, float, str):
            try:
                return option(text)
            except ValueError:
                continue
        if is_config(option) and text == option.__name__:
            return option()
    expected = " or ".join(_describe(option) for option in choices)
    raise UnveilError(f"--set {name}={text}: expected {expected}")


def _describe(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(option)))
    return "none" if option is type(None) else getattr(option, "__name__", str(option))
