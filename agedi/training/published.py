"""Training settings of the published AGeDi, translated to ours.

Settings that differ only in name are aliases of the fields (`lr`, `val_split`); those here differ in meaning too.
"""

import datetime
import math
from collections.abc import Mapping
from typing import Any

from agedi.training.loss_shares import parse_loss_balance

# Fields of configs that all families share, under AGeDi's names.
RENAMED = {
    "lr_factor": "plateau_factor",
    "lr_patience": "plateau_patience",
    "log_interval": "log_every",
    "eps": "smallest_time",  # of the diffusion, not of the optimizer
}
TIMES = ("max_time", "max_time_minutes")
LOGGERS = ("tensorboard", "wandb", "csv")
PROJECT = "agedi"


def translate_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translates published settings to ours; all others are returned unchanged.

    `max_time` (hours, a mapping of days, hours, minutes and seconds, or a timedelta) and `max_time_minutes` add up to
    `max_minutes`; both 0 means no limit. `epochs` -1 means no limit. `logger` wandb with `project` is `wandb_project`.

    Raises:
        ValueError: a time is negative or cannot be read, or the logger is unknown.
    """
    settings = {RENAMED.get(name, name): value for name, value in values.items()}
    if settings.get("epochs") == -1:
        settings["epochs"] = None
    times = [settings.pop(name, None) for name in TIMES]
    if any(time is not None for time in times):
        settings["max_minutes"] = _minutes(*times)
    logger, project = settings.pop("logger", None), settings.pop("project", PROJECT)
    if logger is not None:
        if logger not in LOGGERS:
            raise ValueError(f"logger must be one of {', '.join(LOGGERS)}; got {logger!r}")
        settings |= {"tensorboard": logger != "csv", "wandb_project": project if logger == "wandb" else None}
    balance = settings.get("loss_balance")
    if isinstance(balance, Mapping | list | tuple):
        shares = parse_loss_balance(balance)
        settings["loss_balance"] = None if shares is None else f"{shares.diffusion}:{shares.regressor}"
    return settings


def _minutes(hours: Any, minutes: Any) -> float | None:
    """Minutes in all; None for no limit."""
    try:
        if isinstance(hours, Mapping):
            hours = datetime.timedelta(**hours)
        if isinstance(hours, datetime.timedelta):
            hours = hours.total_seconds() / 3600
        hours, minutes = float(hours or 0), float(minutes or 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"max_time must be hours, and max_time_minutes minutes; got {hours}, {minutes}") from error
    if not (0 <= hours < math.inf and 0 <= minutes < math.inf):
        raise ValueError(f"max_time must be at least 0; got {hours} h, {minutes} min")
    return 60 * hours + minutes or None
