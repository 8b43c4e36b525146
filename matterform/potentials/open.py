"""Opens a force field for the duration of a `with` block, in this process or in worker processes."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from matterform.potentials.base import Potential
from matterform.potentials.config import PotentialConfig
from matterform.potentials.load import load_potential
from matterform.potentials.torch_state import torch_threads
from matterform.potentials.workers import open_in_workers

logger = logging.getLogger(__name__)

R2SCAN = "chgnet r2scan"


@contextlib.contextmanager
def open_potential(config: PotentialConfig | None = None, **options: Any) -> Iterator[Potential]:
    """A force field, with its worker processes if any, which end with the `with` block.

        with open_potential(mlff_model="orb", mlff_path="orb-v2.ckpt", mlff_variant="orb_v2") as potential:
            energies = potential.predict(structures, "energy").energy  # eV per structure

    Args:
        config: which force field; None is CHGNet with the weights in its package.
        options: fields of `PotentialConfig`, which replace those of `config`; mlff_path may be a string.

    Raises:
        ValueError: no path where one is needed, a checkpoint of another model, a device that does not exist.
        TypeError: an option that is no field of `PotentialConfig`.
        FileNotFoundError: there is nothing at the path.
        ImportError: the package is not installed; names the extra to install.
    """
    if isinstance(options.get("mlff_path"), str):
        options["mlff_path"] = pathlib.Path(options["mlff_path"])
    config = dataclasses.replace(config or PotentialConfig(), **options)
    if config.workers:
        with open_in_workers(config) as potential:
            _log_corrections(potential)
            yield potential
    else:
        potential = load_potential(config)
        _log_corrections(potential)
        with torch_threads(config.threads):
            yield potential


def _log_corrections(potential: Potential) -> None:
    """One line about the corrections of energies that are compared with a hull."""
    corrections = {
        True: "contained in the energies of %s",
        False: "added to the energies of %s where they are compared with a hull",
        None: "not known to be in the energies of %s, nor to be missing",
    }
    logger.info(f"MP2020 corrections: {corrections[potential.corrected]}", potential.name)
    if potential.name == R2SCAN:
        logger.warning("%s gives energies of r2SCAN, to compare with a hull of r2SCAN energies only", potential.name)
