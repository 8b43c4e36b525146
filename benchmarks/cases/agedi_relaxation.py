"""How fast does AGeDi relax structures in batches, against ASE's L-BFGS one structure at a time?

    python benchmarks/cases/agedi_relaxation.py --out benchmarks/results/agedi_relaxation.jsonl

The weights are random, at the published sizes, so nothing converges and both ways take all steps. The structures are
random, with 8 to 32 atoms. `ours` is `agedi.relax`; `ase` is `ase.optimize.LBFGS` with the same force field as a
calculator, compiled once per padded length. Both include the conversion from and to ASE.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import ase
import jax
import numpy as np
import tyro
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import LBFGS

import agedi
from agedi.config import DiffusionConfig, ForceFieldConfig, ModelConfig
from agedi.data.buckets import bucket_capacity, geometry_of
from agedi.data.graph import from_atoms, pad_graph, stack_graphs
from agedi.forcefield.relaxation import compiled_force
from agedi.network.score import make_score_model
from benchmarks.timing import report, time_calls

NEVER = 1e-9  # eV/Å: no structure converges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes and options of the benchmark."""

    structures: int = 32  # number of structures
    least_atoms: int = 8  # smallest number of atoms
    most_atoms: int = 32  # largest number of atoms
    density: float = 0.05  # atoms per Å^3
    steps: int = 10  # steps of each relaxation
    repeats: int = 3  # timed runs after the first
    quick: bool = False  # a small network and few structures, to see that it runs
    out: pathlib.Path | None = None  # file to which the result is appended as one line of JSON


class ForceField(Calculator):
    """The force field of a model for one structure at a time."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - ASE's own attribute

    def __init__(self, diffusion: agedi.Diffusion) -> None:
        super().__init__()
        self.diffusion = diffusion

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        graph = from_atoms(atoms)
        cutoff = self.diffusion.config.model.cutoff
        sizes = bucket_capacity([geometry_of(graph)], cutoff)
        evaluate = compiled_force(self.diffusion.model.force_field, cutoff, 2 * sizes.slots, sizes.images)
        found = evaluate(self.diffusion.params, stack_graphs([pad_graph(graph, sizes.length)]))
        forces = np.asarray(found.forces[0], float)[: len(atoms)]
        self.results = {"energy": float(found.energy[0]), "forces": forces}


def random_structures(options: Options) -> list[ase.Atoms]:
    """Atoms at random in cubic cells, at least 1.5 Å apart where that is possible."""
    rng = np.random.default_rng(0)
    found = []
    for count in rng.integers(options.least_atoms, options.most_atoms + 1, options.structures):
        side = (count / options.density) ** (1 / 3)
        places = rng.random((count, 3))
        found.append(ase.Atoms(rng.choice([6, 8, 14], count), scaled_positions=places, cell=[side] * 3, pbc=True))
    return found


def relax_with_ase(diffusion: agedi.Diffusion, structures: list[ase.Atoms], steps: int) -> list[ase.Atoms]:
    """One structure after another by ASE's L-BFGS with the parameters of `agedi.relax`."""
    relaxed = [atoms.copy() for atoms in structures]
    for atoms in relaxed:
        atoms.calc = ForceField(diffusion)
        LBFGS(atoms, logfile=None).run(fmax=NEVER, steps=steps)
    return relaxed


def with_cpu_time(call: Callable[[], Any], seconds: list[float]) -> Callable[[], Any]:
    """The call, which appends the CPU seconds that it takes."""

    def timed() -> Any:
        begin = time.process_time()
        result = call()
        seconds.append(time.process_time() - begin)
        return result

    return timed


def measure(options: Options) -> dict[str, Any]:
    """The results as one line of JSON."""
    sizes: dict[str, Any] = {"feature_size": 8, "n_rbf": 8, "n_blocks": 2, "cutoff": 4.0} if options.quick else {}
    if options.quick:
        options = dataclasses.replace(options, structures=4, most_atoms=12, steps=2, repeats=1)
    config = DiffusionConfig(sigma_max=5.0, model=ModelConfig(**sizes), force_field=ForceFieldConfig())
    diffusion = agedi.Diffusion(config, make_score_model(jax.random.key(0), config))
    structures = random_structures(options)
    calls = {
        "ours": lambda: agedi.relax(diffusion, structures, fmax=NEVER, steps=options.steps),
        "ase": lambda: relax_with_ase(diffusion, structures, options.steps),
    }
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    times = time_calls({name: with_cpu_time(call, cpu[name]) for name, call in calls.items()}, options.repeats)
    seconds = {name: found["steady_s"] for name, found in times.items()}
    cpu_seconds = {name: float(np.median(found[1:])) for name, found in cpu.items()}
    return {
        "benchmark": "agedi_relaxation",
        "quick": options.quick,
        "structures": options.structures,
        "atoms": [options.least_atoms, options.most_atoms],
        "steps": options.steps,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "first_s": {name: found["first_s"] for name, found in times.items()},
        "ratio": seconds["ase"] / seconds["ours"],
        "cpu_ratio": cpu_seconds["ase"] / cpu_seconds["ours"],
    }


if __name__ == "__main__":
    options = tyro.cli(Options)
    report(measure(options), options.out)
