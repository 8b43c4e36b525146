"""How much faster is a training epoch with batches cut to the length of their crystals, and its compilation?

    python benchmarks/cases/crystalformer_likelihood.py --out benchmarks/results/crystalformer_likelihood.jsonl

One optimiser step (loss, gradient, Adam; dropout on) is timed for each bucket of lengths that training uses, for the
full n_max slots, and for the plain network of unrolled Haiku layers at full length. The time of an epoch follows from
the number of batches in each bucket. The time of a step depends only on shapes, not on the crystals.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import tyro

from benchmarks.baselines.crystalformer import make_plain_loss
from benchmarks.timing import num_parameters, peak_rss_mib, report, time_calls
from crystalformer import read_csv
from crystalformer.config import LossConfig, TransformerConfig
from crystalformer.data.batches import bucket_lengths
from crystalformer.data.crystals import Crystals, num_slots, truncate
from crystalformer.loss import make_example_loss
from crystalformer.network.parameters import init_params
from matterform.training.batches import PlannedBatch, make_batch_plan
from matterform.training.config import OptimizerConfig
from matterform.training.mesh import make_mesh
from matterform.training.optimizers import make_optimizer
from matterform.training.state import init_state
from matterform.training.step import Batch, make_train_step

# Slots needed (sites + 1) by the 7,140 binary and ternary crystals of MP-20 (Materials Project, CC BY 4.0):
# number of crystals that need 3, 4, ... 21.
LENGTH_COUNTS = (908, 3064, 1282, 687, 409, 219, 169, 109, 103, 30, 50, 11, 11, 12, 23, 1, 39, 5, 8)
DATA = pathlib.Path(os.environ.get("MATTERFORM_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes and options of the benchmark."""

    # table of crystals; if missing, random ones of the same lengths
    data: pathlib.Path = DATA / "mp20_biternary.csv.gz"
    generation: Literal["rotary", "absolute"] = "rotary"  # kind of positions
    # number type of our activations; the plain network uses float32
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 100  # number of crystals per step
    repeats: int = 3  # number of timed runs after the first
    plain: bool = True  # time the plain network too
    quick: bool = False  # a small network and small batches, to see that it runs
    out: pathlib.Path | None = None  # file to which the result is appended as one line of JSON


def load(path: pathlib.Path, n_max: int) -> Crystals:
    """The crystals of a table, or random ones with as many sites as the real ones."""
    if path.exists():
        return read_csv(path, n_max=n_max)[0]
    rng = np.random.default_rng(0)
    slots = np.repeat(np.arange(3, 3 + len(LENGTH_COUNTS)), LENGTH_COUNTS)
    real = np.arange(n_max) < slots[:, None] - 1
    count = len(slots)
    return Crystals(
        G=np.ones(count, np.int32),
        L=np.tile(np.array([4, 4, 4, 1.6, 1.6, 1.6], np.float32), (count, 1)),
        XYZ=np.where(real[..., None], rng.random((count, n_max, 3), np.float32), 0),
        A=np.where(real, rng.integers(1, 90, real.shape), 0).astype(np.int32),
        W=real.astype(np.int32),
    )


def repeated_step(step: Callable, state: Any, batch: Batch) -> Callable[[], Any]:
    """A call that takes one more training step; a step consumes the state it is given."""
    held = [state]

    def call() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    return call


def measure(options: Options) -> dict[str, Any]:
    """The results as one line of JSON: each bucket, the full length, the plain network, and the epochs that follow."""
    sizes: dict[str, Any] = {"num_layers": 2, "num_heads": 2} if options.quick else {}
    config = TransformerConfig(generation=options.generation, compute_dtype=options.compute_dtype, **sizes)
    batch_size, n_max = (10 if options.quick else options.batch), config.n_max
    crystals = load(options.data, n_max)
    plan = make_batch_plan(num_slots(crystals), batch_size, bucket_lengths(n_max), seed=0)
    planned = plan.epoch(0)
    counts = collections.Counter(batch.length for batch in planned)
    examples = {n_max: planned[0]} | {batch.length: batch for batch in planned}

    mesh, optimizer, key = make_mesh(), make_optimizer(OptimizerConfig()), jax.random.key(0)
    params = init_params(key, config)

    def take(batch: PlannedBatch, length: int) -> Batch:
        rows = Crystals(*(np.asarray(field[batch.indices]) for field in crystals))
        return Batch(truncate(rows, length), batch.weight)

    def call(example_loss: Callable, length: int) -> Callable[[], Any]:
        step = make_train_step(example_loss, optimizer, key, mesh)
        return repeated_step(step, init_state(params, optimizer, mesh), take(examples[length], length))

    loss = make_example_loss(config, LossConfig())
    calls = {str(length): call(loss, length) for length in sorted(examples)}
    if options.plain:
        calls["plain"] = call(make_plain_loss(dataclasses.replace(config, compute_dtype="float32")), n_max)
    times = time_calls(calls, options.repeats)
    compile_s = {name: time["first_s"] - time["steady_s"] for name, time in times.items()}
    cut_s = sum(count * times[str(length)]["steady_s"] for length, count in counts.items())
    full_s = len(planned) * times[str(n_max)]["steady_s"]
    row = {
        "benchmark": "crystalformer_likelihood",
        "quick": options.quick,
        "data": options.data.name if options.data.exists() else "made up",
        "generation": config.generation,
        "dtype": config.compute_dtype,
        "num_parameters": num_parameters(params),
        "batch": batch_size,
        "crystals": len(crystals.G),
        "mean_sites": float(num_slots(crystals).mean()) - 1,
        "batches": {str(length): counts[length] for length in sorted(counts)},
        "step": times,
        "epoch_cut_s": cut_s,
        "epoch_full_s": full_s,
        "ratio": full_s / cut_s,
        "crystals_s": len(crystals.G) / cut_s,
        "compile_all_buckets_s": sum(compile_s[str(length)] for length in counts),
        "compile_full_s": compile_s[str(n_max)],
        "peak_rss_mib": peak_rss_mib(),
    }
    if options.plain:
        row["epoch_plain_s"] = len(planned) * times["plain"]["steady_s"]
        row["ratio_plain"] = row["epoch_plain_s"] / cut_s
        row["compile_ratio_plain"] = compile_s["plain"] / compile_s[str(n_max)]
    return row


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    report(measure(options), options.out)
