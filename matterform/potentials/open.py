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
    """Opens a force field and its worker processes, if any, which end with the `with` block.

        with open_potential(mlff_model="orb", mlff_path="orb-v2.ckpt", mlff_variant="orb_v2") as potential:
            energies = potential.predict(structures, "energy").energy  # eV per structure

    Args:
        config: settings of the force field; None is CHGNet with the weights in its package.
        options: fields of `PotentialConfig`, which replace those of `config`; mlff_path may be a string.

    Raises:
        ValueError: a required path is missing, the checkpoint is of another model, or the device does not exist.
        TypeError: an option is not a field of `PotentialConfig`.
        FileNotFoundError: the path does not exist.
        ImportError: the package is not installed; the message names the extra to install.
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
    """Logs whether corrections are added to energies that are compared with a hull."""
    corrections = {
        True: "contained in the energies of %s",
        False: "added to the energies of %s where they are compared with a hull",
        None: "not known to be in the energies of %s, nor to be missing",
    }
    logger.info(f"MP2020 corrections: {corrections[potential.corrected]}", potential.name)
    if potential.name == R2SCAN:
        logger.warning("%s gives energies of r2SCAN, to compare with a hull of r2SCAN energies only", potential.name)
