"""What AGeDi's experiments share: arguments, runs that are trained once, samples that are drawn once, pictures."""

import argparse
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ase
import numpy as np

import agedi
from agedi.sampling.config import SampleConfig, SamplerConfig
from agedi.sampling.request import SampleRequest, make_initial_state
from agedi.sampling.sample import iterate_from
from agedi.training.run import load_run
from agedi.training.train import read_dataset, resume, train_from_atoms
from matterform.io.files import write_atomically
from matterform.io.formats import read_structures, to_atoms, write_structures
from matterform.plots.curves import TRAINING, VALIDATION, new_figure


def parse_arguments(description: str | None, name: str) -> argparse.Namespace:
    """The arguments of every experiment: where the data are, where results go, and whether to run at full size."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("../shared/data"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs") / name)
    parser.add_argument("--full", action="store_true", help="train longer and sample more: hours on two cores")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for package in ("agedi", "matterform"):
        logging.getLogger(package).setLevel(logging.INFO)
    return arguments


def read_atoms(path: pathlib.Path) -> list[ase.Atoms]:
    """The structures of a file, all of which must be readable."""
    structures, refused = read_structures(path)
    if refused:
        raise ValueError(
            f"{path}: {len(refused)} structures cannot be read; the first is {next(iter(refused.items()))}"
        )
    return [to_atoms(structure) for structure in structures]


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
    return read_atoms(path)


def sample_each(
    diffusion: agedi.Diffusion, requests: Sequence[SampleRequest], sampler: SamplerConfig
) -> list[ase.Atoms]:
    """One structure for each request; their cells and numbers of atoms may differ."""
    states = [make_initial_state(diffusion.config, request) for request in requests]
    config = SampleConfig(seed=0, batch_size=64, progress=True, sampler=sampler)
    return [one.atoms()[-1] for one in iterate_from(diffusion, states, config)]


def distances_within(structures: Sequence[ase.Atoms], cutoff: float) -> np.ndarray:
    """All interatomic distances (Å) below `cutoff`, periodic images included."""
    from ase.neighborlist import neighbor_list

    return np.concatenate([neighbor_list("d", atoms, cutoff) for atoms in structures])


def radial_distribution(
    structures: Sequence[ase.Atoms], cutoff: float, bins: int = 120
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (Å) and the mean of the structures' radial distribution functions g(r)."""
    edges = np.linspace(0.0, cutoff, bins + 1)
    shells = 4 / 3 * np.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    each = []
    for atoms in structures:
        counts, _ = np.histogram(distances_within([atoms], cutoff), edges)
        each.append(counts / (len(atoms) * shells * len(atoms) / atoms.get_volume()))
    return (edges[1:] + edges[:-1]) / 2, np.mean(each, axis=0)


def write_report(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Prints numbers and keeps them as JSON."""
    text = json.dumps(numbers, indent=2)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(text)


def draw_histograms(
    path: pathlib.Path, panels: dict[str, tuple[np.ndarray, np.ndarray]], title: str, bins: int = 60
) -> None:
    """Densities of data and samples, a panel for each quantity."""
    figure, axes = new_figure(len(panels), title)
    for axis, (name, (data, samples)) in zip(axes, panels.items(), strict=True):
        span = np.percentile(data, [0.1, 99.9])
        edges = np.linspace(span[0] - 0.15 * np.ptp(span), span[1] + 0.15 * np.ptp(span), bins + 1)
        axis.hist(data, edges, density=True, color=TRAINING, alpha=0.5, label="data")
        axis.hist(samples, edges, density=True, histtype="step", color=VALIDATION, linewidth=1.5, label="samples")
        axis.set(title=name, yticks=[])
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def save(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure as PNG."""
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
