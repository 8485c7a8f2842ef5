"""Configurations to JSON and back."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from unveil.config.errors import UnveilError

Config = TypeVar("Config")


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values. A dataclass names its class under "kind": unions can be read back."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
        return {"kind": type(config).__name__, **fields}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return config


def from_json(kind: type[Config], value: Any) -> Config:
    """The configuration of class `kind` that `to_json` wrote.

    Raises:
        UnveilError: a name or a value that does not belong there.
    """
    return _read(kind, value, where="")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"optimization.steps": 100, ...} of `to_json`'s answer, "kind" included: two classes are two configurations."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        leaves |= flatten(item, f"{prefix}.{name}" if prefix else name)
    return leaves


def defaults(config: Any) -> dict[str, Any]:
    """Those of a configuration's settings, by dotted name.

    What was written before a setting came into being had it so.
    """
    usual: dict[str, Any] = {}
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        if setting.default is not dataclasses.MISSING:
            usual |= flatten(to_json(setting.default), setting.name)
        if dataclasses.is_dataclass(value):
            usual |= {f"{setting.name}.{name}": default for name, default in defaults(value).items()}
    return usual


def is_config(option: Any) -> bool:
    """Whether this member of a union is a configuration class."""
    return isinstance(option, type) and dataclasses.is_dataclass(option)


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for part in typing.get_args(hint) for option in options(part))
    return (hint,)


def fits_length(kind: Any, items: Sequence[Any]) -> bool:
    """Whether so many items make up a tuple of this type: tuple[float, float] or tuple[str, ...]."""
    members = typing.get_args(kind)
    return members[-1] is ... or len(members) == len(items)


def required_names(kind: Any) -> list[str]:
    """Fields of a dataclass that have no default."""
    unset = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(kind) if f.default is unset and f.default_factory is unset]


def _read(hint: Any, value: Any, where: str) -> Any:
    for option in options(hint):
        if is_config(option) and isinstance(value, dict) and value.get("kind") == option.__name__:
            hints = typing.get_type_hints(option)
            if unknown := set(value) - set(hints) - {"kind"}:
                raise UnveilError(f"configuration {where or option.__name__} has unknown names: {sorted(unknown)}")
            if missing := set(required_names(option)) - set(value):
                raise UnveilError(f"configuration {where or option.__name__} lacks {sorted(missing)}")
            dot = f"{where}." if where else ""
            given = {name: _read(hints[name], item, dot + name) for name, item in value.items() if name in hints}
            return option(**given)
        if typing.get_origin(option) is tuple and isinstance(value, list) and fits_length(option, value):
            return tuple(_read(typing.get_args(option)[0], item, where) for item in value)
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and type(value) is option:
            return value
    raise UnveilError(f"configuration {where or 'as a whole'} holds {value!r}, which does not fit {hint}")
