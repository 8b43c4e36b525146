"""From what a user asks for to a potential or a property model. Nothing is downloaded unless asked for."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator
from typing import Literal

from matterform.potentials.base import Potential, PropertyModel
from matterform.potentials.torch_state import torch_threads

logger = logging.getLogger(__name__)

R2SCAN = "chgnet r2scan"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PotentialConfig:
    """Which force field, where it lies, and what it may use."""

    mlff_model: Literal["chgnet", "orb", "mace", "matgl", "ase"] = "chgnet"
    mlff_path: pathlib.Path | None = None  # checkpoint, or folder (matgl), or `download` (orb); others need none
    mlff_variant: str | None = None  # orb: architecture (orb_v2); chgnet: version (0.3.0); ase: module:Class
    # Whether its energies contain the Materials Project's corrections of 2020, as CHGNet's do; otherwise they are added
    # where energies are compared with a hull. Default: what is usual with the package; for ase it must be said.
    mlff_corrected: bool | None = None
    device: str = "cpu"  # of the force field: cpu, cuda, cuda:1, ...
    mlff_batch_size: int | None = None  # structures evaluated together; default: what is fast with the package on CPUs
    workers: int = 0  # processes beside this one that evaluate; 0: this one does
    threads: int | None = None  # PyTorch's threads in each process; default: its own choice, one in a worker

    def __post_init__(self) -> None:
        for name in ("mlff_batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative; got {self.workers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PropertyConfig:
    """Which property model, where it lies, and what it may use."""

    property_path: pathlib.Path | None = None  # folder of a matgl model
    fidelity: int | None = None  # of a multi-fidelity model: 0 PBE, 1 GLLB-SC, 2 HSE, 3 SCAN
    device: str = "cpu"  # cpu, cuda, cuda:1, ...
    property_batch_size: int = 64  # structures evaluated together

    def __post_init__(self) -> None:
        if self.property_batch_size < 1:
            raise ValueError(f"property_batch_size must be at least 1; got {self.property_batch_size}")


@contextlib.contextmanager
def open_potential(config: PotentialConfig) -> Iterator[Potential]:
    """The potential, with its worker processes if any, which end with the context.

    Raises:
        ValueError: no path where one is needed, a checkpoint of another model, a device that is not here.
        FileNotFoundError: nothing lies at the path.
        ImportError: the package is not installed; names the extra to install.
    """
    from matterform.potentials.workers import spread

    if config.workers:
        with spread(config) as potential:
            _report(potential)
            yield potential
    else:
        potential = load_potential(config)
        _report(potential)
        with torch_threads(config.threads):
            yield potential


def load_potential(config: PotentialConfig) -> Potential:
    """The potential in this process, with as many threads as there happen to be."""
    from matterform.potentials import ase, chgnet, mace, matgl, orb

    loaders = {
        "ase": ase.load_ase,
        "chgnet": chgnet.load_chgnet,
        "mace": mace.load_mace,
        "matgl": matgl.load_matgl,
        "orb": orb.load_orb,
    }
    given = {} if config.mlff_batch_size is None else {"batch_size": config.mlff_batch_size}
    potential = loaders[config.mlff_model](config.mlff_path, config.mlff_variant, config.device, **given)
    return potential if config.mlff_corrected is None else potential._replace(corrected=config.mlff_corrected)


def _report(potential: Potential) -> None:
    """One line on what is done to energies that are compared with a hull."""
    corrections = {
        True: "contained in the energies of %s",
        False: "added to the energies of %s where they are compared with a hull",
        None: "not known to be in the energies of %s, nor to be missing",
    }
    logger.info(f"MP2020 corrections: {corrections[potential.corrected]}", potential.name)
    if potential.name == R2SCAN:
        logger.warning("%s gives energies of r2SCAN, to compare with a hull of r2SCAN energies only", potential.name)


def load_property(config: PropertyConfig) -> PropertyModel:
    """The property model in this process.

    Raises:
        ValueError: no path, a folder without a model, a fidelity that the model does not have, an absent device.
        FileNotFoundError: nothing lies at the path.
        ImportError: matgl is not installed.
    """
    from matterform.potentials.matgl import load_matgl_property

    return load_matgl_property(
        config.property_path, config.fidelity, config.device, batch_size=config.property_batch_size
    )
