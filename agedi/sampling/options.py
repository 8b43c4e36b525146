"""Keyword options of `agedi.sample` and `agedi.inpaint`, translated by name to the config objects.

A keyword is the name of a field of one of the config classes, of a config nested in them, or a published alias of it.
"""

import dataclasses
import logging
import typing
from collections.abc import Mapping
from typing import Any

from agedi.sampling.config import ForcefieldGuidanceConfig, SamplerConfig, check_choices
from matterform.config import ALIASES, nested

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
        ValueError: an option is unknown (the message suggests the nearest one), is given twice, or is out of range.
    """
    call = dataclasses.make_dataclass("Call", [(cls.__name__, cls) for cls in classes])
    values = nested(call, _flattened(options))
    return [_build(cls, values.get(cls.__name__, {})) for cls in classes]


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
    fields = dataclasses.fields(SamplerConfig)
    known = {name for field in fields for name in (field.name, *field.metadata.get(ALIASES, ()))} - set(OWN_KEYWORDS)
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"sampler_kwargs must be among {', '.join(sorted(known))}; got {unknown[0]!r}")
    return dict(given)


def _build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    check_choices(cls, values)
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    return cls(
        **{
            name: _build(typing.cast(type, kinds[name]), value) if dataclasses.is_dataclass(kinds[name]) else value
            for name, value in values.items()
        }
    )
