"""What AGeDi's recipes share: runs that are trained once, samples that are drawn once."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ase

import agedi
from agedi.sampling.config import SampleConfig, SamplerConfig
from agedi.sampling.request import SampleRequest, make_initial_state
from agedi.sampling.sample import iterate_from
from agedi.training.run import load_run
from agedi.training.train import read_dataset, resume, train_from_atoms
from experiments import common
from matterform import write_structures


def train_once(
    out: pathlib.Path,
    atoms: Sequence[ase.Atoms],
    regressor_data: Sequence[ase.Atoms] | None = None,
    **options: Any,
) -> agedi.Diffusion:
    """A model trained in out/version_0: loaded if it has been, resumed if it was interrupted."""
    run, finished = out / "version_0", out / "finished"
    if not finished.exists():
        if run.is_dir():
            dataset = read_dataset(load_run(run).data, agedi.load_diffusion(run).config, atoms, regressor_data)
            result = resume(run, dataset, epochs=options["epochs"])
        else:
            result = train_from_atoms(atoms, regressor_data=regressor_data, log_dir=out, **options)
        if result.fit.outcome == "interrupted":
            raise SystemExit(130)
        finished.touch()
    return agedi.load_diffusion(run)


def sample_once(path: pathlib.Path, draw: Callable[[], list[ase.Atoms]]) -> list[ase.Atoms]:
    """Samples from a file, or drawn and written to it."""
    if not path.exists():
        write_structures(path, draw())
    return common.read_atoms(path)


def sample_each(
    diffusion: agedi.Diffusion, requests: Sequence[SampleRequest], sampler: SamplerConfig
) -> list[ase.Atoms]:
    """One structure for each request; their cells and numbers of atoms may differ."""
    states = [make_initial_state(diffusion.config, request) for request in requests]
    config = SampleConfig(seed=0, batch_size=64, progress=True, sampler=sampler)
    return [one.atoms()[-1] for one in iterate_from(diffusion, states, config)]
