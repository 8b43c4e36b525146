"""Settings of force fields and property models; importing this module does not load PyTorch."""

import dataclasses
import pathlib
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class PotentialConfig:
    """A force field: its package, its weights and the resources that it may use."""

    mlff_model: Literal["chgnet", "orb", "mace", "matgl", "ase"] = "chgnet"  # package of the force field
    mlff_path: pathlib.Path | None = None  # checkpoint: file, folder (matgl), or `download` (orb); none: chgnet's own
    mlff_variant: str | None = None  # orb: architecture (orb_v2); chgnet: version (0.3.0); ase: module:Class
    # whether the energies include the Materials Project's corrections of 2020 (CHGNet's do); otherwise these are added
    # for comparisons with a hull; default: as usual for the package; required for ase
    mlff_corrected: bool | None = None
    device: str = "cpu"  # PyTorch device of the force field: cpu, cuda, cuda:1, ...
    mlff_batch_size: int | None = None  # structures evaluated together; default: a fast number on CPUs
    workers: int = 0  # number of worker processes; 0 evaluates in the main process
    threads: int | None = None  # PyTorch threads per process; default: PyTorch's choice, one in a worker process

    def __post_init__(self) -> None:
        for name in ("mlff_batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative; got {self.workers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PropertyConfig:
    """A property model: its weights and the resources that it may use."""

    property_path: pathlib.Path | None = None  # folder of a matgl model
    fidelity: int | None = None  # data set of a multi-fidelity model: 0 PBE, 1 GLLB-SC, 2 HSE, 3 SCAN
    device: str = "cpu"  # PyTorch device: cpu, cuda, cuda:1, ...
    property_batch_size: int = 64  # structures evaluated together

    def __post_init__(self) -> None:
        if self.property_batch_size < 1:
            raise ValueError(f"property_batch_size must be at least 1; got {self.property_batch_size}")
