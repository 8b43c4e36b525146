"""Keyword options of `agedi.sample` and `agedi.inpaint`, translated by name to the config objects.

A keyword is the name of a field of one of the config classes, of a config nested in them, or a published alias of it.
"""

import dataclasses
import difflib
import logging
import typing
from collections.abc import Mapping
from typing import Any

from agedi.sampling.config import ForcefieldGuidanceConfig, SamplerConfig, check_choices

# Published keywords without an effect here -> the line that is logged if they are used.
NO_EFFECT = {
    "compile": "",  # sampling is always compiled
    "print_timings": "print_timings is an option of the command line only",
}
# Settings of the sampler that are keywords of their own, not keys of sampler_kwargs.
OWN_KEYWORDS = ("sampler", "steps", "guidance_weight")

logger = logging.getLogger(__name__)


def configs_from_options(options: Mapping[str, Any], *classes: type[Any]) -> list[Any]:
    """One instance of each class, from the options that name its fields; an option that is None keeps the default.

    `sampler_kwargs` is a mapping of settings of the sampler, `ff_guidance` a weight (1/eV), a mapping or a
    `ForcefieldGuidanceConfig`.

    Raises:
        ValueError: an option is unknown (names the nearest one) or given twice, or its value is out of range.
    """
    places = {name: (index, *path) for index, cls in enumerate(classes) for name, path in _places(cls).items()}
    trees: list[dict[str, Any]] = [{} for _ in classes]
    given: dict[tuple[Any, ...], str] = {}
    for name, value in _flattened(options).items():
        if name not in places:
            raise ValueError(f"unknown option {name!r}; {_nearest(name, places)}")
        place = places[name]
        if place in given:
            raise ValueError(f"{given[place]} and {name} are two names of one option; give one")
        given[place] = name
        node = trees[place[0]]
        for part in place[1:-1]:
            node = node.setdefault(part, {})
        node[place[-1]] = value
    return [_build(cls, tree) for cls, tree in zip(classes, trees, strict=True)]


def guidance_options(given: Any) -> dict[str, Any]:
    """The published option `ff_guidance` as settings by name.

    Raises:
        ValueError: a mapping has an unknown key.
    """
    if isinstance(given, ForcefieldGuidanceConfig):
        return dataclasses.asdict(given)
    if not isinstance(given, Mapping):
        return {"guidance": float(given)}
    known = [field.name for field in dataclasses.fields(ForcefieldGuidanceConfig)]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"ff_guidance may have {', '.join(known)}; got {unknown[0]!r}")
    return dict(given)


def _flattened(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None, with `sampler_kwargs` and `ff_guidance` replaced by the settings in them."""
    flat = {name: value for name, value in options.items() if value is not None}
    for name, message in NO_EFFECT.items():
        if flat.pop(name, False) and message:
            logger.warning(message)
    parts = [_sampler_settings(flat.pop("sampler_kwargs", {}))]
    if "ff_guidance" in flat:
        parts.append(guidance_options(flat.pop("ff_guidance")))
    for part in parts:
        if twice := [name for name in part if name in flat]:
            raise ValueError(f"{twice[0]} is given twice")
        flat |= part
    return flat


def _sampler_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    known = set(_places(SamplerConfig)) - set(OWN_KEYWORDS)
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"sampler_kwargs must be among {', '.join(sorted(known))}; got {unknown[0]!r}")
    return dict(given)


def _places(cls: type[Any]) -> dict[str, tuple[str, ...]]:
    """The path of every field that is not a config itself, by its name and by its aliases."""
    places: dict[str, tuple[str, ...]] = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            nested = _places(typing.cast(type, field.type))
            places |= {name: (field.name, *path) for name, path in nested.items()}
        else:
            places |= dict.fromkeys((field.name, *field.metadata.get("aliases", ())), (field.name,))
    return places


def _build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    check_choices(cls, values)
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    return cls(
        **{
            name: _build(typing.cast(type, kinds[name]), value) if dataclasses.is_dataclass(kinds[name]) else value
            for name, value in values.items()
        }
    )


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the known ones are {', '.join(sorted(known))}"
