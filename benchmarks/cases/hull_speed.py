"""Energies above the hull: ours against entries and a phase diagram built for every crystal, in the same run.

    python benchmarks/cases/hull_speed.py mp20_biternary.csv.gz --out benchmarks/results/hull_speed.jsonl

Two JSON lines. `hull`: some hundred crystals of the table against the hull of the whole table: ours on a newly opened
index, with every system's hull built in the call (`ours`), a second call (`ours_again`), and pymatgen in two ways.
`plain` finds the entries of each crystal's elements, makes them from dictionaries and builds a phase diagram, as
reward functions that read a file of entries do; `plain_ready` keeps the entries of the whole table ready.
`index`: how long the table takes to index as a table and as a `.json.bz2` of computed entries with structures, and how
long an index takes to open.
"""

import argparse
import bz2
import json
import pathlib
import tempfile
import time
import warnings
from typing import Any

import numpy as np

from benchmarks import timing
from matterform.io.formats import read_structures
from matterform.stability.hull import open_hull
from matterform.stability.hull_files import index_hull


def main() -> None:
    """Measures hulls and indexing, and reports both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=pathlib.Path, help="CSV table of crystals")
    parser.add_argument("--crystals", type=int, default=400, help="number of crystals (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="few crystals, to see that it runs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    crystals, repeats = (20, 1) if arguments.quick else (arguments.crystals, 3)
    structures, _ = read_structures(arguments.table)
    with tempfile.TemporaryDirectory() as folder:
        index_hull(arguments.table, pathlib.Path(folder, "table"))
        timing.report(compare(structures, pathlib.Path(folder, "table"), crystals, repeats), arguments.out)
        few = structures[:100] if arguments.quick else structures
        timing.report(time_indexing(arguments.table, few, pathlib.Path(folder)), arguments.out)


def compare(structures: list[Any], index: pathlib.Path, count: int, repeats: int) -> dict[str, Any]:
    """Times the three ways; `largest_difference` (eV/atom) is between ours and pymatgen."""
    formation = np.array([structure.properties["formation_energy_per_atom"] for structure in structures])
    chosen = np.random.default_rng(0).choice(len(structures), count, replace=False)
    # Shifted, so that crystals are not entries themselves.
    energies = formation[chosen] + np.random.default_rng(1).normal(0, 0.1, count)
    compositions = [structures[i].composition for i in chosen]
    totals = energies * [composition.num_atoms for composition in compositions]
    dictionaries = computed_entries(structures, formation)
    ready = [(set(entry["data"]["elements"]), pd_entry(entry)) for entry in dictionaries]
    opened = open_hull(index)

    def from_ready() -> np.ndarray:
        return np.array(
            [
                phase_diagram_energy([entry for symbols, entry in ready if symbols <= elements_of(c)], c, total)
                for c, total in zip(compositions, totals, strict=True)
            ]
        )

    def from_dictionaries() -> np.ndarray:
        return np.array(
            [
                phase_diagram_energy(
                    [pd_entry(entry) for entry in dictionaries if set(entry["data"]["elements"]) <= elements_of(c)],
                    c,
                    total,
                )
                for c, total in zip(compositions, totals, strict=True)
            ]
        )

    times = timing.time_calls(
        {
            "ours": lambda: open_hull(index).energy_above_hull(compositions, totals).values,
            "ours_again": lambda: opened.energy_above_hull(compositions, totals).values,
            "plain_ready": from_ready,
            "plain": from_dictionaries,
        },
        repeats,
    )
    difference = np.abs(opened.energy_above_hull(compositions, totals).values - from_ready()).max()
    return {
        "benchmark": "hull_speed",
        "case": "hull",
        "crystals": count,
        "systems": opened.cache_info().misses,
        "entries": len(dictionaries),
        **times,
        "ratio": times["plain"]["steady_s"] / times["ours"]["steady_s"],
        "ratio_ready": times["plain_ready"]["steady_s"] / times["ours"]["steady_s"],
        "ratio_again": times["plain"]["steady_s"] / times["ours_again"]["steady_s"],
        "largest_difference": float(difference),
    }


def computed_entries(structures: list[Any], formation: np.ndarray) -> list[dict[str, Any]]:
    """The table's crystals, and its elements at zero, as the dictionaries of a file of entries."""
    symbols = sorted({symbol for structure in structures for symbol in elements_of(structure.composition)})
    rows = [
        (structure.composition.as_dict(), energy * len(structure))
        for structure, energy in zip(structures, formation, strict=True)
    ]
    rows += [({symbol: 1.0}, 0.0) for symbol in symbols]
    return [
        {"composition": composition, "energy": energy, "correction": 0.0, "data": {"elements": sorted(composition)}}
        for composition, energy in rows
    ]


def elements_of(composition: Any) -> set[str]:
    """Symbols of the elements in a composition."""
    return {element.symbol for element in composition}


def pd_entry(entry: dict[str, Any]) -> Any:
    """pymatgen's entry of a dictionary."""
    from pymatgen.entries.computed_entries import ComputedEntry

    return ComputedEntry.from_dict(entry)


def phase_diagram_energy(entries: list[Any], composition: Any, total: float) -> float:
    """eV/atom above the hull of `entries`, by pymatgen."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram

    diagram = PhaseDiagram(entries)
    return diagram.get_e_above_hull(PDEntry(composition, total), allow_negative=True, check_stable=False)


def time_indexing(table: pathlib.Path, structures: list[Any], folder: pathlib.Path) -> dict[str, Any]:
    """Seconds to index the table and the same crystals in Alexandria's format, and to open an index."""
    source = folder / "entries.json.bz2"
    text = json.dumps({"entries": [with_structure(structure) for structure in structures]})
    source.write_bytes(bz2.compress(text.encode()))
    start = time.perf_counter()
    index_hull(table, folder / "from_table")
    table_s, start = time.perf_counter() - start, time.perf_counter()
    index_hull(source, folder / "from_entries")
    entries_s = time.perf_counter() - start
    opening = timing.time_call(open_hull, folder / "from_table", repeats=20)
    return {
        "benchmark": "hull_speed",
        "case": "index",
        "rows": len(structures),
        "table_s": table_s,
        "entries_s": entries_s,
        "entries_per_s": len(structures) / entries_s,
        "entries_mb": len(text) / 1e6,
        "entries_mb_per_s": len(text) / 1e6 / entries_s,
        "index_mb": sum(file.stat().st_size for file in (folder / "from_table").iterdir()) / 1e6,
        "open_ms": 1e3 * opening["steady_s"],
        "peak_rss_mib": timing.peak_rss_mib(),
    }


def with_structure(structure: Any) -> dict[str, Any]:
    """A crystal as the dictionary of a ComputedStructureEntry, with an arbitrary energy."""
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    structure = structure.copy()
    structure.properties = {}
    return ComputedStructureEntry(structure, -3.0 * len(structure)).as_dict()


if __name__ == "__main__":
    main()
