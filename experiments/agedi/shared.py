"""Shared by AGeDi's recipes: runs that are trained only once, and samples that are drawn only once."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ase

import agedi
from experiments import common
from matterform import write_structures


def train_once(
    out: pathlib.Path,
    atoms: Sequence[ase.Atoms],
    regressor_data: Sequence[ase.Atoms] | None = None,
    **options: Any,
) -> agedi.Diffusion:
    """The model trained in out/version_0: loaded if training has ended, resumed if it was interrupted."""
    run, finished = out / "version_0", out / "finished"
    if not finished.exists():
        checkpoint = run if run.is_dir() else None
        result = agedi.train_from_atoms(
            atoms, regressor_data=regressor_data, checkpoint=checkpoint, log_dir=out, **options
        )
        if result.fit.outcome == "interrupted":
            raise SystemExit(130)
        finished.touch()
    return agedi.load_diffusion(run)


def sample_once(path: pathlib.Path, draw: Callable[[], list[ase.Atoms]]) -> list[ase.Atoms]:
    """Samples read from a file, or if it does not exist, drawn and written to it."""
    if not path.exists():
        write_structures(path, draw())
    return common.read_atoms(path)


def sample_each(
    diffusion: agedi.Diffusion, requests: Sequence[agedi.SampleRequest], sampler: agedi.SamplerConfig
) -> list[ase.Atoms]:
    """One structure for each request; their cells and numbers of atoms may differ."""
    return agedi.sample_each(diffusion, requests, agedi.SampleConfig(seed=0, progress=True, sampler=sampler))
