"""How long does the reward of one epoch of fine-tuning take, against general tools with one crystal at a time?

    python benchmarks/cases/reward_epoch.py --out benchmarks/results/reward_epoch.jsonl

A batch of crystals drawn by the shipped model, CHGNet's energies, MP2020 corrections, energies above a hull. Ours is
the reward that `crystalformer ppo` calls: primitive cells, batches, energies only, corrections without VASP's input,
hulls of a chemical system as matrices (rebuilt in every repetition, as if every system were new). The plain
ways take one crystal after the other: energy, U values from MPRelaxSet's INCAR (in memory), the compatibility class,
and a PhaseDiagram of the entries of its system, which are looked up in a dictionary:

- `plain`: the conventional cell and the ASE calculator, which computes forces and stress with the energy;
- `plain_primitive`: the same of our primitive cells;
- `plain_energy`: of our primitive cells, the energy only, which takes hardly more time than the network itself.

Our reward rejects some crystals before the network is evaluated (atoms too close, isolated, cells too dense), on which
the plain ways may take longest. So every way is also timed on the crystals with a value in our reward only: `accepted`.
Most of the plain hull's time goes to the few crystals of eight elements and more, which not every batch has.

The hull's entries are the table's formation energies, made total ones by references fitted to CHGNet. Its energies
already contain the corrections; all ways add them once more, to measure their cost.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import tyro

from benchmarks.timing import peak_rss_mib, report, time_calls
from crystalformer.checkpoint.pretrained import load_pretrained, training_spacegroups
from crystalformer.data.crystals import Crystals, to_structures
from crystalformer.data.primitive import build_structures
from crystalformer.rl import ehull_reward
from crystalformer.rl.ppo.rollout import Stopwatch, score_built
from crystalformer.sampling.sample import sample
from crystalformer.symmetry.wyckoff import draw_spacegroups
from matterform.io.formats import read_structures
from matterform.potentials.base import Potential
from matterform.potentials.config import PotentialConfig
from matterform.potentials.open import open_potential
from matterform.potentials.torch_state import torch_threads
from matterform.stability.hull import make_hull
from matterform.stability.hull_entries import Entries, Entry, fractions_of, pack_entries
from matterform.stability.references import fit_references

if TYPE_CHECKING:
    from pymatgen.core import Structure

NOT_COMPUTABLE = (ValueError, RuntimeError)  # isolated atoms, an unknown element, a hull without a corner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes and options of the benchmark."""

    table: pathlib.Path = pathlib.Path(os.environ.get("MATTERFORM_DATA", "../shared/data"), "mp20_biternary.csv.gz")
    batch: int = 200  # number of crystals
    repeats: int = 3  # number of timed runs after the first
    fitted: int = 600  # number of crystals to which the references are fitted
    threads: int = 1  # number of threads of PyTorch
    workers: int = 0  # number of worker processes of our reward
    seed: int = 0  # random seed of the crystals
    quick: bool = False  # a small batch, to see that it runs
    out: pathlib.Path | None = None  # file to which the result is appended as one line of JSON


class PlainHull(NamedTuple):
    """The entries of each chemical system."""

    entries: dict[frozenset[str], list[Any]]

    def diagram(self, symbols: Sequence[str]) -> Any:
        """A new phase diagram of a system and those within it."""
        from pymatgen.analysis.phase_diagram import PhaseDiagram

        subsets = itertools.chain.from_iterable(
            itertools.combinations(sorted(symbols), size) for size in range(1, len(symbols) + 1)
        )
        return PhaseDiagram([entry for subset in subsets for entry in self.entries.get(frozenset(subset), [])])


class Result(NamedTuple):
    """Energies above the hull (eV/atom), NaN where there is none, and the seconds of each phase."""

    values: np.ndarray
    seconds: dict[str, float]


def make_hulls(potential: Potential, options: Options) -> tuple[Entries, PlainHull]:
    """The same entries of total energies for both sides."""
    from pymatgen.core import Composition
    from pymatgen.entries.computed_entries import ComputedEntry

    structures = list(read_structures(options.table)[0])
    formation = np.array([structure.properties["formation_energy_per_atom"] for structure in structures])
    chosen = np.random.default_rng(options.seed).permutation(len(structures))[: options.fitted]
    energies = potential.predict([structures[i] for i in chosen], "energy").energy
    per_atom = energies / [len(structures[i]) for i in chosen]
    compositions = [structure.composition for structure in structures]
    references, _ = fit_references([compositions[i] for i in chosen], per_atom, formation[chosen])
    known = [i for i, composition in enumerate(compositions) if set(composition.as_dict()) <= set(references.energies)]
    totals = {i: composition_energy(compositions[i], references.energies) for i in known}
    computed = [ComputedEntry(compositions[i], totals[i] + formation[i] * len(structures[i])) for i in known]
    computed += [ComputedEntry(Composition(symbol), energy) for symbol, energy in references.energies.items()]
    return pack_both(computed)


def pack_both(computed: Sequence[Any]) -> tuple[Entries, PlainHull]:
    """Computed entries in our form and in the plain one."""
    by_system: dict[frozenset[str], list[Any]] = {}
    for entry in computed:
        by_system.setdefault(frozenset(entry.composition.as_dict()), []).append(entry)
    ours = [Entry(fractions_of(entry.composition), entry.energy_per_atom) for entry in computed]
    return pack_entries("total", ours), PlainHull(by_system)


def composition_energy(composition: Any, energies: dict[str, float]) -> float:
    """Energy (eV) of the separate elements."""
    return sum(amount * energies[symbol] for symbol, amount in composition.as_dict().items())


def our_reward(crystals: Crystals, potential: Potential, entries: Entries) -> Result:
    """The reward as an epoch calls it, with hulls that are built for the first time."""
    watch, hull = Stopwatch(), make_hull(entries)
    reward = ehull_reward(
        potential._replace(predict=timed(watch, "energy", potential.predict), corrected=False),
        hull._replace(energy_above_hull=timed(watch, "hull", hull.energy_above_hull)),
    )
    start = time.perf_counter()
    with watch.phase("building"):
        structures, problems = build_structures(crystals)
    scores = score_built(reward, structures, problems)
    total = time.perf_counter() - start
    values = np.where([bool(problem) for problem in scores.problems], np.nan, scores.details["e_above_hull"])
    return Result(values, {**watch.seconds, "corrections": total - sum(watch.seconds.values())})


def plain_reward(
    crystals: Crystals, energy: Callable[["Structure"], float], hull: PlainHull, primitive: bool
) -> Result:
    """One crystal after the other, with ASE or the potential's own call and pymatgen."""
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    watch, scheme = Stopwatch(), MaterialsProject2020Compatibility(check_potcar=False)
    with watch.phase("building"):
        structures = build_structures(crystals)[0] if primitive else to_structures(crystals)
    values = np.full(len(structures), np.nan)
    for index, structure in enumerate(structures):
        with contextlib.suppress(*NOT_COMPUTABLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with watch.phase("energy"):
                total = energy(structure)
            with watch.phase("corrections"):
                entry = corrected_entry(structure, total, scheme)
            with watch.phase("hull"):
                diagram = hull.diagram([element.symbol for element in structure.composition.elements])
                values[index] = diagram.get_e_above_hull(entry, allow_negative=True)
    return Result(values, watch.seconds)


def corrected_entry(structure: "Structure", energy: float, scheme: Any) -> Any:
    """An entry with the corrections that a calculation with MPRelaxSet's U values would get."""
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.vasp.sets import MPRelaxSet

    inputs = MPRelaxSet(structure)  # which sorts the sites by element
    u_values = zip(inputs.poscar.site_symbols, inputs.incar.get("LDAUU", []), strict=False)
    hubbards = {symbol: value for symbol, value in u_values if value}
    parameters = {"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards}
    return scheme.process_entry(ComputedStructureEntry(structure, energy, parameters=parameters), on_error="raise")


def make_plain_energies() -> dict[str, Callable[["Structure"], float]]:
    """Energies (eV) of single structures: by the ASE calculator, and by CHGNet's own call."""
    from chgnet.model.dynamics import CHGNetCalculator
    from chgnet.model.model import CHGNet
    from pymatgen.io.ase import AseAtomsAdaptor

    model = CHGNet.load(use_device="cpu", verbose=False)
    calculator = CHGNetCalculator(model=model, use_device="cpu", on_isolated_atoms="error")

    def by_calculator(structure: "Structure") -> float:
        atoms = AseAtomsAdaptor.get_atoms(structure)
        atoms.calc = calculator
        return float(atoms.get_potential_energy())

    def energy_only(structure: "Structure") -> float:
        return float(model.predict_structure(structure, task="e")["e"]) * len(structure)

    return {"calculator": by_calculator, "energy_only": energy_only}


def timed(watch: Stopwatch, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its time added to a phase."""

    def call(*args: Any) -> Any:
        with watch.phase(name):
            return function(*args)

    return call


def draw(options: Options) -> tuple[Crystals, float]:
    """The batch, and the seconds that a compiled sampler takes to draw a similar one."""
    checkpoint = load_pretrained()
    groups = draw_spacegroups(training_spacegroups(), options.batch, [options.seed])
    for seed in (options.seed + 1, options.seed):
        start = time.perf_counter()
        crystals = sample(checkpoint.params, checkpoint.config, jax.random.key(seed), groups)
        seconds = time.perf_counter() - start
    return crystals, seconds


def run(options: Options) -> dict[str, Any]:
    """The results as one line of JSON."""
    if options.quick:
        options = dataclasses.replace(options, batch=12, fitted=100, repeats=1)
    crystals, sampling = draw(options)
    plain_energies = make_plain_energies()
    config = PotentialConfig(threads=options.threads, workers=options.workers)
    with torch_threads(options.threads), open_potential(config) as potential:
        entries, plain_hull = make_hulls(potential, options)
        ways: dict[str, Callable[[Crystals], Result]] = {
            "ours": lambda drawn: our_reward(drawn, potential, entries),
            "plain": lambda drawn: plain_reward(drawn, plain_energies["calculator"], plain_hull, False),
            "plain_primitive": lambda drawn: plain_reward(drawn, plain_energies["calculator"], plain_hull, True),
            "plain_energy": lambda drawn: plain_reward(drawn, plain_energies["energy_only"], plain_hull, True),
        }
        has_value = np.isfinite(ways["ours"](crystals).values)
        accepted = Crystals(*(field[has_value] for field in crystals))
        calls = {name: functools.partial(way, crystals) for name, way in ways.items()}
        calls |= {f"{name}_accepted": functools.partial(way, accepted) for name, way in ways.items()}
        results: dict[str, Result] = {}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in calls}

        def kept(name: str) -> Callable[[], None]:
            def call() -> None:
                start = time.process_time()
                results[name] = calls[name]()
                cpu_seconds[name].append(time.process_time() - start)

            return call

        times = time_calls({name: kept(name) for name in calls}, options.repeats)
    ours = {name: results[name].values for name in ("ours", "ours_accepted")}
    cpu = {name: float(np.median(seconds[1:])) for name, seconds in cpu_seconds.items()}
    own = {
        name: "ours_accepted" if name.endswith("_accepted") else "ours" for name in calls
    }  # the call to compare with
    return {
        "benchmark": "reward_epoch",
        "batch": options.batch,
        "threads": options.threads,
        "workers": options.workers,
        "hull_entries": entries.count,
        "sampling_s": sampling,
        **{f"{name}_s": time["steady_s"] for name, time in times.items()},
        **{
            f"ratio_{name}": times[name]["steady_s"] / times[own[name]]["steady_s"]
            for name in calls
            if name not in ours
        },
        # CPU seconds of this process; on a busy machine they are more reliable than wall time.
        "cpu_s": cpu,
        "cpu_ratio": {name: cpu[name] / cpu[own[name]] for name in calls if name not in ours},
        "phases_s": {name: result.seconds for name, result in results.items()},
        "without_value": {name: int(np.isnan(result.values).sum()) for name, result in results.items()},
        "largest_difference_ev": {
            name: float(np.nanmax(np.abs(results[name].values - ours[own[name]]))) for name in calls if name not in ours
        },
        "peak_rss_mib": peak_rss_mib(),
    }


if __name__ == "__main__":
    options = tyro.cli(Options)
    report(run(options), options.out)
