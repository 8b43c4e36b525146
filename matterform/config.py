"""Frozen dataclasses <-> YAML, strictly: a misspelt key or a value of the wrong type is an error, never a default.

Fields may be int, float, bool, str, pathlib.Path, None, Literal, unions, tuples, and dataclasses of these, nested.
"""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from matterform.io.files import write_atomically

Config = TypeVar("Config")


def load_config(cls: type[Config], path: str | os.PathLike[str]) -> Config:
    """Reads a YAML file into the dataclass `cls`.

    Raises:
        ValueError: the file is not YAML, or a key is unknown, missing, given twice or of the wrong type.
    """
    values = _read_yaml(path)
    try:
        return _to_dataclass(cls, {} if values is None else values, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The plain values of a YAML file of keys; {} if it is empty.

    Raises:
        ValueError: the file is not YAML, has no keys, or has one twice.
    """
    values = _read_yaml(path)
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path}: {_mismatch('', 'keys and values', values)}")
    return values or {}


def save_config(config: Any, path: str | os.PathLike[str]) -> None:
    """Writes a dataclass as YAML, whole or not at all.

    Raises:
        ValueError: `load_config` would not give the same config back, as with a list in a field for a tuple.
    """
    import yaml

    values = to_dict(config)
    if from_dict(type(config), values) != config:
        raise ValueError(f"{config} does not survive saving; give its fields values of exactly their annotated types")
    text = yaml.dump(values, Dumper=_yaml_classes()[1], sort_keys=False, allow_unicode=True)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds the dataclass `cls` from plain values (lists for tuples, strings for paths), checking every one.

    Raises:
        ValueError: with the dotted key, what was expected and what was found.
    """
    return _to_dataclass(cls, values, "")


def to_dict(config: Any) -> dict[str, Any]:
    """The plain values of a dataclass, as `from_dict` and YAML take them."""
    return {field.name: _to_plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return value


def _to_dataclass(cls: type[Config], values: Any, key: str) -> Config:
    if not isinstance(values, Mapping):
        raise _mismatch(key, f"keys of {cls.__name__}", values)
    annotations = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in fields:
            raise ValueError(f"unknown key {_join(key, name)!r}; {_nearest(str(name), list(fields))}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            expected = _describe(annotations[name])
            raise ValueError(f"missing key {_join(key, name)!r} (expected {expected}); found only {list(values)}")
    converted = {name: _convert(annotations[name], value, _join(key, name)) for name, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:  # from __post_init__, which does not know where in the file it stands
        raise ValueError(f"{key}: {error}" if key else str(error)) from error


def _convert(annotation: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return _to_dataclass(typing.cast(type, annotation), value, key)
    if origin in (typing.Union, types.UnionType):
        return _to_union(arguments, value, key)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        hint = f"; {_nearest(value, [str(choice) for choice in arguments])}" if isinstance(value, str) else ""
        raise ValueError(f"{_mismatch(key, _describe(annotation), value)}{hint}")
    if origin is tuple:
        return _to_tuple(arguments, value, key)
    if annotation is pathlib.Path and isinstance(value, str | pathlib.Path):
        return pathlib.Path(value)
    if annotation is float and type(value) is int:
        return float(value)
    if annotation in (int, float, bool, str, types.NoneType) and type(value) is annotation:
        return value
    if annotation in (int, float, bool, str, types.NoneType, pathlib.Path):
        raise _mismatch(key, _describe(annotation), value)
    raise TypeError(f"field {key!r} has the annotation {annotation}, which configs do not support")


def _to_union(members: tuple[Any, ...], value: Any, key: str) -> Any:
    """The first member that takes the value; a member of exactly its type goes before one that converts it."""
    nested = [member for member in members if dataclasses.is_dataclass(member)]
    if isinstance(value, Mapping) and len(nested) == 1:
        return _convert(nested[0], value, key)  # for its own, more precise error
    for member in sorted(members, key=lambda member: member is not type(value)):
        try:
            return _convert(member, value, key)
        except ValueError:
            continue
    raise _mismatch(key, " or ".join(_describe(member) for member in members), value)


def _to_tuple(items: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _mismatch(key, "a list", value)
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise _mismatch(key, f"a list of {len(items)} values", value)
    return tuple(_convert(item, entry, f"{key}[{i}]") for i, (item, entry) in enumerate(zip(items, value, strict=True)))


def _mismatch(key: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{key or 'config'}: expected {expected}, found {value!r} ({type(value).__name__})")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the known ones are {', '.join(known)}"


def _describe(annotation: Any) -> str:
    if annotation is types.NoneType:
        return "null"
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _read_yaml(path: str | os.PathLike[str]) -> Any:
    import yaml

    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no YAML, nor any other text: {error}") from error
    try:
        return yaml.load(text, Loader=_yaml_classes()[0])  # a SafeLoader, which builds plain values only
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error


@functools.cache
def _yaml_classes() -> tuple[Any, Any]:
    """A safe loader and a dumper that agree that `1e-3` is a number and that no key comes twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
                raise yaml.constructor.ConstructorError(None, None, f"keys given twice: {twice}", node.start_mark)
            return super().construct_mapping(node, deep)

    class Dumper(yaml.SafeDumper):
        pass

    # YAML 1.1, which PyYAML follows, takes a number with an exponent but no point for a string.
    exponent = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
    for yaml_class in (Loader, Dumper):
        yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    return Loader, Dumper
