"""A potential in several worker processes, each of which loads it once."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from matterform.potentials.base import Potential, Predictions, Quantity, batches_of_like_size
from matterform.potentials.config import PotentialConfig
from matterform.potentials.load import load_potential
from matterform.potentials.torch_state import torch_threads
from matterform.processes import death_explained, worker_pool

if TYPE_CHECKING:
    import pymatgen.core

CHUNK = 8  # structures per task, if no batch size is given
DEATH = (
    "a process that evaluates the force field died; use fewer workers or a smaller batch if memory is short, "
    'and keep what a script does under `if __name__ == "__main__":`'
)


@contextlib.contextmanager
def open_in_workers(config: PotentialConfig) -> Iterator[Potential]:
    """Opens the potential of `config` in `config.workers` processes; predictions are those of a single process.

    Processes are spawned, so the code of a script must be under `if __name__ == "__main__":`.

    Raises:
        ChildProcessError: a worker process died, e.g. for lack of memory.
        ValueError, FileNotFoundError, ImportError: as for `load_potential`.
    """
    config, workers = dataclasses.replace(config, workers=0, threads=config.threads or 1), config.workers
    with worker_pool(workers) as pool:
        with death_explained(DEATH):
            name, corrected = pool.submit(_describe, config).result()

        def predict(structures: Sequence["pymatgen.core.Structure"], quantity: Quantity) -> Predictions:
            chunks = _chunks(structures, workers, config.mlff_batch_size or CHUNK)
            with death_explained(DEATH):
                jobs = [pool.submit(_predict, config, [structures[i] for i in chunk], quantity) for chunk in chunks]
                return _in_order(chunks, [job.result() for job in jobs])

        yield Potential(name, predict, corrected)


def _chunks(structures: Sequence["pymatgen.core.Structure"], workers: int, size: int) -> list[list[int]]:
    """Splits indices into chunks of similar size, largest structures first, so that no long task starts last."""
    size = max(1, min(size, math.ceil(len(structures) / workers)))
    return batches_of_like_size([len(structure) for structure in structures], size)[::-1]


def _in_order(chunks: Sequence[Sequence[int]], parts: Sequence[Predictions]) -> Predictions:
    order = list(itertools.chain.from_iterable(chunks))
    back = np.argsort(np.array(order, int))
    forces = list(itertools.chain.from_iterable(part.forces for part in parts))
    problems = list(itertools.chain.from_iterable(part.problems for part in parts))
    return Predictions(
        np.concatenate([np.zeros(0), *(part.energy for part in parts)])[back],
        [forces[index] for index in back],
        np.concatenate([np.zeros((0, 3, 3)), *(part.stress for part in parts)])[back],
        [problems[index] for index in back],
    )


@functools.cache
def _load(config: PotentialConfig) -> Potential:
    """Loads the potential once per worker process."""
    return load_potential(config)


def _describe(config: PotentialConfig) -> tuple[str, bool | None]:
    potential = _load(config)
    return potential.name, potential.corrected


def _predict(config: PotentialConfig, structures: list, quantity: Quantity) -> Predictions:
    potential = _load(config)
    with torch_threads(config.threads):
        return potential.predict(structures, quantity)
