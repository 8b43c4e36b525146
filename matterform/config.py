"""Frozen dataclasses <-> YAML, strictly: a misspelt key or a value of the wrong type is an error, never a default.

Pydantic checks and builds the values: int, float, bool, str, pathlib.Path, None, Literal, unions, tuples, dicts, and
dataclasses of these, nested. Its import takes 0.2 s, so it is imported only when a config is read or written.
"""

import dataclasses
import difflib
import functools
import json
import os
import pathlib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from matterform.io.files import write_atomically

if TYPE_CHECKING:
    import pydantic

Config = TypeVar("Config")
ALIASES = "aliases"  # key of a field's metadata; its value is a tuple of other names, with underscores


def setting(default: Any, *aliases: str) -> Any:
    """A dataclass field with aliases (published names), which are accepted in files, flags and calls.

    `learning_rate: float = setting(1e-4, "lr")`; with `dataclasses.MISSING` as the default the field is required.
    """
    return dataclasses.field(default=default, metadata={ALIASES: aliases})


def named(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces aliases in the options of a Python call by the field names of `cls`.

    Raises:
        ValueError: an option is not a field of `cls` (the message suggests the nearest one), or is given twice.
    """
    return {name: options[given] for name, given in _given_names(cls, options, "").items()}


def nested(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nests flat values for `from_dict`: each key moves into the nested dataclass of `cls` that has such a field.

    Keys and aliases may be given at any level: `{"lr": 1e-3}` and `{"optimizer": {"lr": 1e-3}}` mean the same.

    Raises:
        ValueError: a key is unknown or given twice.
    """
    places, leaves, found = _places(cls), [], {}
    for name, value in _flat(cls, values):
        if name not in places:
            known = [place[-1] for place in places.values()]
            raise ValueError(f"unknown key {name!r}; {_nearest(name, list(dict.fromkeys(known)), list(places))}")
        *path, field = places[name]
        if (path, field) in leaves:
            raise ValueError(f"{field} is given twice; the last time as {name}")
        leaves.append((path, field))
        here = found
        for part in path:
            here = here.setdefault(part, {})
        here[field] = value
    return found


def _places(cls: type) -> dict[str, tuple[str, ...]]:
    """Path to each field of `cls` and of its nested dataclasses, by name and by alias."""
    places: dict[str, tuple[str, ...]] = {}
    annotations = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(annotations[field.name]):
            places |= {name: (field.name, *place) for name, place in _places(annotations[field.name]).items()}
        else:
            places |= dict.fromkeys((field.name, *field.metadata.get(ALIASES, ())), (field.name,))
    return places


def _flat(cls: type, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields key and value pairs at any level of `values`, except nested dataclasses themselves."""
    annotations = typing.get_type_hints(cls)
    for name, value in values.items():
        if dataclasses.is_dataclass(annotations.get(name)) and isinstance(value, Mapping):
            yield from _flat(annotations[name], value)
        else:
            yield name, value


def load_config(cls: type[Config], path: str | os.PathLike[str]) -> Config:
    """Reads a YAML file as an instance of the dataclass `cls`.

    Raises:
        ValueError: the file is not YAML, or a key is unknown, missing, given twice or of the wrong type.
    """
    values = _read_yaml(path)
    try:
        return _build(cls, {} if values is None else values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a YAML file with a mapping as a dict of plain values; {} if it is empty.

    Raises:
        ValueError: the file is not YAML or not a mapping, or a key occurs twice.
    """
    values = _read_yaml(path)
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path}: {_mismatch('', 'keys and values', values)}")
    return values or {}


def save_config(config: Any, path: str | os.PathLike[str]) -> None:
    """Writes a dataclass as YAML, atomically.

    Raises:
        ValueError: `load_config` would not return an equal config, e.g. because a tuple field contains a list.
    """
    import yaml

    values = to_dict(config)
    if from_dict(type(config), values) != config:
        raise ValueError(f"{config} does not survive saving; give its fields values of exactly their annotated types")
    text = yaml.dump(values, Dumper=_yaml_classes()[1], sort_keys=False, allow_unicode=True)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds the dataclass `cls` from plain values (lists for tuples, strings for paths), and checks every value.

    Raises:
        ValueError: a key or value is invalid; the message gives the dotted key, the expected and the found value.
        TypeError: a field has an annotation that is not supported in configs.
    """
    return _build(cls, values)


def _build(cls: type[Config], values: Any) -> Config:
    from pydantic import ValidationError

    plain = _with_field_names(cls, values, "")
    # In strict mode, pydantic converts lists to tuples, strings to paths and dicts to dataclasses only from JSON.
    text = json.dumps(plain, default=lambda value: str(value) if isinstance(value, pathlib.PurePath) else {})
    try:
        return _adapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        raise _explained(cls, plain, error) from error


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a dataclass to plain values for `from_dict` and YAML.

    Raises:
        TypeError: a field has an annotation that is not supported in configs.
    """
    return _adapter(type(config)).dump_python(config, mode="json", warnings=False)


@functools.cache
def _adapter(cls: type) -> "pydantic.TypeAdapter[Any]":
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(cls)
    except PydanticUserError as error:
        raise TypeError(f"{cls.__name__} has an annotation that configs do not support: {error.message}") from error


def _with_field_names(annotation: Any, value: Any, key: str) -> Any:
    """Replaces aliases by field names in a plain value, also in nested dataclasses; checks the names of all keys."""
    cls = _dataclass_in(annotation, value)
    if cls is not None:
        if not isinstance(value, Mapping):
            raise _mismatch(key, f"keys of {cls.__name__}", value)
        annotations = typing.get_type_hints(cls)
        names = _given_names(cls, value, key)
        for field in dataclasses.fields(cls):
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and field.name not in names:
                expected = _describe(annotations[field.name])
                raise ValueError(
                    f"missing key {_join(key, field.name)!r} (expected {expected}); found only {list(names)}"
                )
        return {
            name: _with_field_names(annotations[name], value[given], _join(key, name)) for name, given in names.items()
        }
    if typing.get_origin(annotation) is tuple and isinstance(value, list | tuple):
        return [_with_field_names(_item(annotation, i), item, f"{key}[{i}]") for i, item in enumerate(value)]
    return value


def _given_names(cls: type, values: Mapping[str, Any], key: str) -> dict[str, str]:
    """{field name: the name under which its value was given}."""
    fields = {field.name: field.name for field in dataclasses.fields(cls)}
    names = {alias: field.name for field in dataclasses.fields(cls) for alias in field.metadata.get(ALIASES, ())}
    found: dict[str, str] = {}
    for given in values:
        name = (names | fields).get(given)
        if name is None:
            raise ValueError(f"unknown key {_join(key, given)!r}; {_nearest(str(given), list(fields), list(names))}")
        if name in found:
            raise ValueError(f"{_join(key, found[name])} and {_join(key, given)} are two names of one key; give one")
        found[name] = given
    return found


def _explained(cls: type, values: Any, error: "pydantic.ValidationError") -> ValueError:
    """Pydantic's first error as a ValueError with the dotted key, the expected and the found value."""
    first = error.errors(include_url=False)[0]
    annotation, key = cls, ""
    for part in typing.cast(tuple[Any, ...], first["loc"]):
        nested = _dataclass_in(annotation, values)
        if nested is not None and isinstance(values, Mapping) and part in values:
            annotation, key = typing.get_type_hints(nested)[part], _join(key, part)
        elif typing.get_origin(annotation) is tuple and isinstance(part, int) and part < len(values):
            annotation, key = _item(annotation, part), f"{key}[{part}]"
        else:
            break  # the remaining parts are members of a union
        values = values[part]
    if first["type"] == "value_error":  # raised by __post_init__, whose message has no key
        problem = first.get("ctx", {}).get("error")
        return ValueError(f"{key}: {problem}" if key else str(problem))
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    hint = f"; {_nearest(values, [str(choice) for choice in choices])}" if choices and isinstance(values, str) else ""
    return ValueError(f"{_mismatch(key, _describe(annotation), values)}{hint}")


def _dataclass_in(annotation: Any, value: Any) -> type | None:
    """The dataclass in an annotation, None if there is none; in a union only if the value is a mapping."""
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and isinstance(value, Mapping):
        nested = [member for member in typing.get_args(annotation) if dataclasses.is_dataclass(member)]
        return typing.cast(type, nested[0]) if len(nested) == 1 else None
    return None


def _item(annotation: Any, index: int) -> Any:
    """The annotation of an entry of a tuple; Any beyond its end."""
    items = typing.get_args(annotation)
    if items[-1] is Ellipsis:
        return items[0]
    return items[index] if index < len(items) else Any


def _mismatch(key: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{key or 'config'}: expected {expected}, found {value!r} ({type(value).__name__})")


def _nearest(name: str, known: list[str], aliases: typing.Sequence[str] = ()) -> str:
    close = difflib.get_close_matches(name, [*known, *aliases], n=1)
    return f"did you mean {close[0]!r}?" if close else f"the known ones are {', '.join(known)}"


def _describe(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is types.NoneType:
        return "null"
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(member) for member in arguments)
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} values"
    return str(annotation).replace("typing.", "") if origin else annotation.__name__


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _read_yaml(path: str | os.PathLike[str]) -> Any:
    import yaml

    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML or any other text: {error}") from error
    try:
        return yaml.load(text, Loader=_yaml_classes()[0])  # a SafeLoader, which builds plain values only
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error


@functools.cache
def _yaml_classes() -> tuple[Any, Any]:
    """A safe loader and a dumper that treat `1e-3` as a number and a repeated key as an error."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
                raise yaml.constructor.ConstructorError(None, None, f"keys given twice: {twice}", node.start_mark)
            return super().construct_mapping(node, deep)

    class Dumper(yaml.SafeDumper):
        pass

    # In YAML 1.1, which PyYAML implements, a number with an exponent but no decimal point is a string.
    exponent = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
    for yaml_class in (Loader, Dumper):
        yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    return Loader, Dumper
