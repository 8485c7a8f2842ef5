"""Choosing by name, and changing one leaf of a configuration by its dotted name."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from unveil.config.errors import UnveilError
from unveil.config.serialize import fits_length, is_config, options, required_names

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
    """`config` with leaves changed by "dotted.name=value"; of two values for one name the later counts.

    Raises:
        UnveilError: an unknown name (the nearest real one is given) or a value of another type.
    """
    changes: dict[str, str] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UnveilError(f"--set {assignment}: write NAME=VALUE, as in --set optimization.global_batch_size=256")
        changes[name] = text
    return _replace(config, changes, "")


def _replace(config: Any, changes: dict[str, str], prefix: str) -> Any:
    # All at once: an image size and the patch size that goes with it are each refused beside the other's old value.
    hints = typing.get_type_hints(type(config))
    new: dict[str, Any] = {}
    deeper: dict[str, dict[str, str]] = {}
    for name, text in changes.items():
        first, dot, rest = name.partition(".")
        if first not in hints:
            near = difflib.get_close_matches(first, hints, n=1, cutoff=0.3)
            hint = f"; perhaps you meant {prefix}{near[0]}" if near else f"; there are: {', '.join(hints)}"
            raise UnveilError(f"--set {prefix}{name}: {type(config).__name__} has no {first!r}{hint}")
        if dot:
            deeper.setdefault(first, {})[rest] = text
        else:
            new[first] = _parse(hints[first], text, prefix + name)
    for name, rival in getattr(type(config), "RIVALS", {}).items():
        if name in new and rival not in new:
            new[rival] = None
    for first, inner in deeper.items():
        current = new[first] if first in new else getattr(config, first)
        if not dataclasses.is_dataclass(current):
            rest = next(iter(inner))
            raise UnveilError(f"--set {prefix}{first}.{rest}: {first} holds {current!r}, which has no {rest!r}")
        new[first] = _replace(current, inner, f"{prefix}{first}.")
    return dataclasses.replace(config, **new)


def _parse(hint: Any, text: str, name: str) -> Any:
    choices = options(hint)
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    for option in choices:
        if typing.get_origin(option) is tuple:
            items = [item.strip() for item in text.strip("()[]").split(",") if item.strip()]
            if not fits_length(option, items):
                continue
            return tuple(_parse(typing.get_args(option)[0], item, name) for item in items)
        if typing.get_origin(option) is typing.Literal and text in typing.get_args(option):
            return text
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if option in (int, float, str):
            try:
                value = option(text)
            except ValueError:
                continue
            if option is float and not math.isfinite(value):
                continue
            return value
        if is_config(option) and text == option.__name__:
            if needed := required_names(option):
                raise UnveilError(
                    f"--set {name}={text}: {text} cannot be chosen by its class alone, it needs {needed[0]}"
                )
            return option()
    expected = " or ".join(_describe(option) for option in choices)
    raise UnveilError(f"--set {name}={text}: expected {expected}")


def _describe(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        names = [str(name) for name in typing.get_args(option)]
        return names[0] if len(names) == 1 else "one of " + ", ".join(names)
    if typing.get_origin(option) is tuple:
        inner, *others = typing.get_args(option)
        return f"{'several' if others == [...] else 1 + len(others)} of {_describe(inner)}, with commas between"
    return "none" if option is type(None) else getattr(option, "__name__", str(option))
