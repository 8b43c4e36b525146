"""Settings of a data set."""

import dataclasses
from typing import Literal

EXTENSIVE = ("energy", "free_energy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """How structures are prepared for training, whatever the model."""

    # atoms that are neither moved nor changed: those under a FixAtoms constraint (MaskFixed), or none
    mask: Literal["none", "MaskFixed"] = "none"
    confinement: tuple[float, float] | None = None  # z_min and z_max (Å) that contain all free atoms; none: no walls
    canonical_cell: bool = False  # rotate structures so that their cells are lower triangular
    repeat: int | None = None  # add repeated cells, up to repeat x repeat x 1, during training; none: no repeated cells
    # number of epochs after which the next larger repeated cells are added; needs repeat
    repeat_epoch: int | None = None
    extensive: tuple[str, ...] = EXTENSIVE  # properties that grow with the number of atoms

    def __post_init__(self) -> None:
        if (self.repeat is None) != (self.repeat_epoch is None):
            given, missing = ("repeat", "repeat_epoch") if self.repeat_epoch is None else ("repeat_epoch", "repeat")
            raise ValueError(f"{given} needs {missing} too: repeated cells join the data every repeat_epoch epochs")
        if self.repeat is not None and self.repeat < 2:
            raise ValueError(f"repeat must be at least 2; got {self.repeat}")
        if self.repeat_epoch is not None and self.repeat_epoch < 1:
            raise ValueError(f"repeat_epoch must be at least 1; got {self.repeat_epoch}")
