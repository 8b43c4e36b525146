"""Shared by all benchmarks: timed calls, limits of the machine, and JSON lines with the origin of the results."""

import datetime
import json
import os
import pathlib
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def time_calls(calls: Mapping[str, Callable[[], Any]], repeats: int = 5, burst: int = 1) -> dict[str, dict[str, float]]:
    """Seconds of each call: the first (with compilation) and the median of later ones.

    The calls take turns, so that other load on the machine affects all of them and ratios are reliable. In its turn a
    call is made `burst` times and the last one counts: by then its data are in the caches, and the threads of other
    libraries, which may wait actively for a while, are idle.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    first: dict[str, float] = {}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            for _ in range(burst):
                start = time.perf_counter()
                jax.block_until_ready(call())
                elapsed = time.perf_counter() - start
                first.setdefault(name, elapsed)
            seconds[name].append(elapsed)
    return {name: {"first_s": first[name], "steady_s": float(np.median(s[1:]))} for name, s in seconds.items()}


def time_call(function: Callable[..., Any], *args: Any, repeats: int = 5) -> dict[str, float]:
    """`time_calls` for a single function."""
    return time_calls({"": lambda: function(*args)}, repeats)[""]


def machine_limits() -> dict[str, float]:
    """Current limits of this machine: float32 multiply-adds in large matrices, and bytes read from memory (1e9 / s)."""
    size, length = 2048, 2**27  # matrices of 16 MiB, a vector of 512 MiB: no cache holds it
    matrix, vector = jnp.ones((size, size)), jnp.ones(length)
    times = time_calls({"multiply": lambda: product(matrix, matrix), "read": lambda: total(vector)}, repeats=7)
    return {
        "peak_gmac_s": round(size**3 / times["multiply"]["steady_s"] / 1e9, 1),
        "peak_read_gb_s": round(4 * length / times["read"]["steady_s"] / 1e9, 1),
    }


product = jax.jit(jnp.dot)
total = jax.jit(jnp.sum)


def peak_rss_mib() -> float:
    """Peak memory (MiB) of this process since its start."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def num_parameters(params: Any) -> int:
    """The number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def report(row: Mapping[str, Any], out: pathlib.Path | None = None) -> None:
    """Prints `row`, with machine and versions, as one JSON line, and appends it to `out`."""
    line = json.dumps({**_rounded(row), **_origin()})
    print(line, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")


def _rounded(row: Any) -> Any:
    """Floats to four digits: timings have no more."""
    if isinstance(row, Mapping):
        return {name: _rounded(value) for name, value in row.items()}
    return float(f"{row:.4g}") if isinstance(row, float) else row


def _origin() -> dict[str, Any]:
    folder = pathlib.Path(__file__).parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "jax": jax.__version__,
        "commit": commit or None,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
    }
