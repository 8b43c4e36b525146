"""How fast are CIFs read into sequences, against pymatgen + SpacegroupAnalyzer + pyxtal in the same run?

    python benchmarks/cases/crystalformer_data.py mp20.csv.gz >> benchmarks/results/crystalformer_data.jsonl

One JSON line per table. The slow path reads every k-th row, ours all rows in one process and in two. On a busy machine
only the ratios are reliable, and scaling follows from CPU time: that of the parent is the serial part, and that of two
workers should equal that of one.
"""

import json
import os
import pathlib
import resource
import sys
import time
import warnings

import numpy as np

from crystalformer.data.convert import read_csv
from crystalformer.data.symmetrize import crystal_from_text
from matterform.io.formats import iterate_csv

SLOW_ROWS = 300


def read_slowly(cif: str) -> None:
    """The path of the published sequences."""
    from pymatgen.core import Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
    from pyxtal import pyxtal

    structure = SpacegroupAnalyzer(Structure.from_str(cif, fmt="cif"), symprec=0.01).get_refined_structure()
    pyxtal().from_seed(structure, tol=0.01)


def seconds(function, *args) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def measure_reading(path: pathlib.Path, workers: int) -> dict[str, float]:
    """Wall-clock and CPU seconds of reading a table with some workers."""

    def cpu(who: int) -> float:
        usage = resource.getrusage(who)
        return usage.ru_utime + usage.ru_stime

    parent, children = cpu(resource.RUSAGE_SELF), cpu(resource.RUSAGE_CHILDREN)
    wall = seconds(lambda: read_csv(path, workers=workers))
    parent, children = cpu(resource.RUSAGE_SELF) - parent, cpu(resource.RUSAGE_CHILDREN) - children
    return {"wall_s": round(wall, 2), "parent_cpu_s": round(parent, 2), "workers_cpu_s": round(children, 2)}


def measure(path: pathlib.Path) -> dict[str, object]:
    """Times both paths on one table."""
    cifs = [record.text for record in iterate_csv(path)]
    sample = cifs[:: max(1, len(cifs) // SLOW_ROWS)]
    read_slowly(cifs[0])  # imports and tables are not counted
    crystal_from_text(cifs[0])
    # Alternating, so that other load on the machine affects both.
    pairs = np.array([(seconds(read_slowly, cif), seconds(crystal_from_text, cif)) for cif in sample])
    slow_ms, same_rows_ms = 1e3 * pairs.mean(0)
    all_rows_ms = 1e3 * seconds(lambda: [crystal_from_text(cif) for cif in cifs]) / len(cifs)
    return {
        "benchmark": "crystalformer_data",
        "table": path.name,
        "rows": len(cifs),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "slow_rows": len(sample),
        "slow_ms": round(slow_ms, 3),
        "ours_same_rows_ms": round(same_rows_ms, 3),
        "ours_all_rows_ms": round(all_rows_ms, 3),
        "ratio_same_rows": round(slow_ms / same_rows_ms, 2),
        "ratio_all_rows": round(slow_ms / all_rows_ms, 2),
        "one_worker": measure_reading(path, 1),
        "two_workers": measure_reading(path, 2),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for argument in sys.argv[1:]:
        print(json.dumps(measure(pathlib.Path(argument))), flush=True)
