"""How fast are many crystals relaxed together, atoms and cells, against ASE's FIRE one crystal at a time?

    python benchmarks/cases/relaxation_speed.py mp20.csv.gz --out benchmarks/results/relaxation_speed.jsonl

Real crystals with atoms and cells moved at random, CHGNet with the weights in its package. `ours` is
`matterform.relax`; `ase` is `ase.optimize.FIRE` on a `FrechetCellFilter` with CHGNet's own calculator. No crystal
converges, so both evaluate each of them `steps` + 1 times.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pymatgen.core
import tyro
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

import matterform
from benchmarks.timing import report, time_calls
from matterform.io.formats import to_atoms

NEVER = 1e-9  # eV/Å: no crystal converges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes and options of the benchmark."""

    table: tyro.conf.Positional[pathlib.Path]  # crystals in any format; the first ones are used
    crystals: int = 32  # number of crystals
    steps: int = 10  # steps of each relaxation
    repeats: int = 2  # timed runs after the first
    quick: bool = False  # few crystals and steps, to see that it runs
    out: pathlib.Path | None = None  # file to which the result is appended as one line of JSON


def displaced_crystals(options: Options) -> list[pymatgen.core.Structure]:
    """The first crystals of a table with atoms moved by about 0.1 Å and cells strained by about 2 %."""
    rng = np.random.default_rng(0)
    crystals, _ = matterform.read_structures(options.table, limit=options.crystals)
    for crystal in crystals:
        crystal.apply_strain(0.02 * rng.normal(size=3))
        crystal.perturb(0.1)
    return crystals


def relax_with_ase(crystals: list[pymatgen.core.Structure], steps: int) -> list[float]:
    """One crystal after another, with the calculator that comes with CHGNet; energies (eV)."""
    from chgnet.model.dynamics import CHGNetCalculator

    calculator, energies = CHGNetCalculator(use_device="cpu"), []
    for crystal in crystals:
        atoms = to_atoms(crystal)
        atoms.calc = calculator
        FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=NEVER, steps=steps)
        energies.append(float(atoms.get_potential_energy()))
    return energies


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
    if options.quick:
        options = dataclasses.replace(options, crystals=4, steps=2, repeats=1)
    crystals = displaced_crystals(options)
    never = matterform.RelaxConfig(max_force=NEVER)
    with matterform.open_potential(mlff_model="chgnet", threads=1) as potential:
        calls = {
            "ours": lambda: matterform.relax(potential, crystals, options.steps, never),
            "ase": lambda: relax_with_ase(crystals, options.steps),
        }
        cpu: dict[str, list[float]] = {name: [] for name in calls}
        times = time_calls({name: with_cpu_time(call, cpu[name]) for name, call in calls.items()}, options.repeats)
        lowered = matterform.relax(potential, crystals, options.steps, never).energy.sum() - sum(
            relax_with_ase(crystals, options.steps)
        )
    seconds = {name: found["steady_s"] for name, found in times.items()}
    cpu_seconds = {name: float(np.median(found[1:])) for name, found in cpu.items()}
    return {
        "benchmark": "relaxation_speed",
        "quick": options.quick,
        "crystals": options.crystals,
        "atoms": sum(map(len, crystals)),
        "steps": options.steps,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratio": seconds["ase"] / seconds["ours"],
        "cpu_ratio": cpu_seconds["ase"] / cpu_seconds["ours"],
        "ours_minus_ase_ev_per_atom": float(lowered) / sum(map(len, crystals)),
    }


if __name__ == "__main__":
    options = tyro.cli(Options)
    report(measure(options), options.out)
