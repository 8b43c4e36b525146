"""Shares of the diffusion loss and the force field loss in the total, parsed from user input."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PARTS = ("diffusion", "regressor")
SEPARATORS = r"(?<=[\d%\s])[:/-]"


class LossBalance(NamedTuple):
    """Shares of the two losses in the total; they sum to 1."""

    diffusion: float
    regressor: float


def parse_loss_balance(given: Any) -> LossBalance | None:
    """Shares of the losses from "80:20", "80/20", "0.8-0.2", "50%:50%", a pair, a mapping, or the regressor's share.

    Raises:
        ValueError: the shares are not two numbers of at least 0, or both are 0.
    """
    if given is None:
        return None
    try:
        diffusion, regressor = map(float, _two_numbers(given))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"loss_balance must be shares of diffusion and regressor, as 80:20, or the regressor's share, as 0.2; "
            f"got {given!r}"
        ) from error
    if not (diffusion >= 0 and regressor >= 0 and diffusion + regressor > 0):
        hint = "; in YAML, write 80:20 in quotes" if isinstance(given, int | float) else ""
        raise ValueError(f"shares in loss_balance must be at least 0 and not both 0; got {given!r}{hint}")
    return LossBalance(diffusion / (diffusion + regressor), regressor / (diffusion + regressor))


def _two_numbers(given: Any) -> Sequence[Any]:
    if isinstance(given, Mapping):
        if set(given) != set(PARTS):
            raise ValueError("other keys")
        return [given[part] for part in PARTS]
    if isinstance(given, str):
        parts = [part.strip().removesuffix("%") for part in re.split(SEPARATORS, given)]
        given = parts if len(parts) > 1 else float(parts[0]) / (100 if "%" in given else 1)
    if isinstance(given, int | float):
        return [1 - given, given]
    return given
