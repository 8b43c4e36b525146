"""Speed and memory of AtomFormer's forward pass and training step, compared with plain JAX and plain PyTorch.

    python benchmarks/cases/atomformer_speed.py --out benchmarks/results/atomformer_speed.jsonl

`step` lines: one forward pass and one training step (loss of energies and forces, gradient, AdamW) of our network, of
the plain per-block form in JAX and of the same architecture in PyTorch (where torch is installed), taking turns. `rate`
is the floating-point rate of the matrix products in the published architecture, over that of a large product on this
machine; our network needs fewer, because both halves of a block's output go to the residual and are added beforehand.
`memory` lines: bytes that the compiled training step needs besides its arguments and results. `epoch` line: a training
epoch over structures of mixed sizes, in buckets of lengths and padded to the largest.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from atomformer.config import SIZES, AtomformerConfig, LossConfig, model_config
from atomformer.data.examples import StructureExample
from atomformer.data.structure import Structure
from atomformer.loss import make_example_loss
from atomformer.network.transformer import make_transformer
from benchmarks.baselines import atomformer as plain_atomformer
from benchmarks.timing import machine_limits, num_parameters, peak_rss_mib, report, time_calls
from matterform.io.formats import read_structures
from matterform.training.batches import bucket_lengths, make_batch_plan
from matterform.training.mesh import make_mesh
from matterform.training.state import init_state
from matterform.training.step import Batch, make_train_step

DATA = pathlib.Path(os.environ.get("MATTERFORM_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))
MIXED = ("3bpa_train_300K", "acac_train_300K", "mlearn_Si_train", "mlearn_Mo_train")
# For use without these files: number of atoms -> number of structures of that size.
MIXED_COUNTS = {27: 500, 15: 500, 64: 145, 63: 57, 54: 163, 53: 21, 96: 1, 24: 5, 36: 3, 18: 2, 12: 2}
LOSS = LossConfig(formation_energy=1.0, forces=1.0)
LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.01
BURST = 3  # successive calls of an implementation, of which the last is timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes and options of the benchmark."""

    # network size, number of structures, atoms per structure
    cases: tuple[str, ...] = ("tiny,8,48", "base,8,48", "base,4,160")
    memory: bool = True  # measure the memory of a training step as well
    epoch: bool = True  # measure an epoch over structures of mixed sizes as well
    torch: bool = True  # compare with PyTorch as well
    repeats: int = 5  # number of timed runs after the first
    quick: bool = False  # the smallest shapes, to see that it runs
    out: pathlib.Path | None = None  # file to which the results are appended as lines of JSON


def main(options: Options) -> None:
    """Prints one line per case."""
    if options.quick:
        options = dataclasses.replace(options, cases=("tiny,2,8",), repeats=1)
    for case in options.cases:
        size, structures, atoms = case.split(",")
        report(measure_steps(size, int(structures), int(atoms), options), options.out)
    if options.memory:
        for row in measure_memory((16,) if options.quick else (48, 96, 160)):
            report(row, options.out)
    if options.epoch:
        report(measure_epoch(options), options.out)


def measure_steps(size: str, structures: int, atoms: int, options: Options) -> dict[str, Any]:
    """Forward pass and training step of all implementations on the same shapes."""
    config = model_config(size)
    batch = make_batch(structures, atoms)
    params, apply = make_transformer(jax.random.key(0), config)
    forward = jax.jit(lambda p, x: _energy_and_forces(jax.vmap(apply, in_axes=(None, None, 0))(p, None, x)))
    plain = jax.jit(lambda p, x: _energy_and_forces(plain_atomformer.forward(p, config, x)))
    on_device = jax.tree.map(jnp.asarray, batch)
    forwards: dict[str, Callable[[], Any]] = {
        "ours": lambda: forward(params, on_device.structure),
        "plain": lambda: plain(params, on_device.structure),
    }
    steps = {"ours": our_step(params, config, batch), "plain": plain_step(params, config, on_device)}
    if options.torch:
        forwards["torch"], steps["torch"] = torch_calls(size, batch)
    forward_times, step_times = (time_calls(calls, options.repeats, BURST) for calls in (forwards, steps))
    rate = 2e9 * machine_limits()["peak_gmac_s"]
    flops = matrix_flops(config, structures, atoms)
    row: dict[str, Any] = {"benchmark": "step", "size": size, "structures": structures, "atoms": atoms}
    row |= {"parameters": num_parameters(params), "dtype": "float32", "peak_gflop_s": rate / 1e9}
    for name, times in (("forward", forward_times), ("train", step_times)):
        row[name] = times
        row[f"{name}_ratio"] = {
            other: times[other]["steady_s"] / times["ours"]["steady_s"] for other in times if other != "ours"
        }
        passes = 1 if name == "forward" else 3
        row[f"{name}_rate"] = {who: passes * flops / time["steady_s"] / rate for who, time in times.items()}
    return {**row, "peak_rss_mib": peak_rss_mib()}


def make_batch(structures: int, atoms: int, length: int | None = None) -> StructureExample:
    """Random molecules with targets, padded to `length`."""
    rng = np.random.default_rng(0)
    length = length or atoms
    mask = np.broadcast_to(np.arange(length) < atoms, (structures, length)).copy()
    tokens = np.where(mask, rng.choice([1, 6, 7, 8, 26], (structures, length)), 119).astype(np.int32)
    positions = 3 * rng.normal(size=(structures, length, 3)).astype(np.float32)
    targets = {
        "formation_energy": rng.normal(size=structures).astype(np.float32),
        "forces": rng.normal(size=(structures, length, 3)).astype(np.float32),
    }
    structure = Structure(tokens, positions, mask)
    return StructureExample(structure, targets, np.zeros_like(mask), np.arange(structures, dtype=np.int32))


def _energy_and_forces(outputs: Any) -> Any:
    return outputs.formation_energy, outputs.forces


def our_step(params: Any, config: AtomformerConfig, batch: StructureExample) -> Callable[[], Any]:
    """The training step that `atomformer pretrain` takes, on its own copy of the parameters."""
    atoms = float(batch.structure.mask.sum() / len(batch.index))
    loss = make_example_loss(config, LOSS, {"formation_energy": 1.0, "forces": 3 * atoms})
    mesh, optimizer = make_mesh(), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    step = make_train_step(loss, optimizer, jax.random.key(0), mesh)
    state = init_state(params, optimizer, mesh)
    rows = Batch(batch, np.ones(len(batch.index), np.float32))

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, rows)
        return state.params, metrics

    return call


def plain_step(params: Any, config: AtomformerConfig, batch: StructureExample) -> Callable[[], Any]:
    """Loss, gradient and AdamW of the plain network."""
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    energy, forces = batch.targets["formation_energy"], batch.targets["forces"]
    known = jnp.ones(energy.shape, bool)

    def update(params, opt_state):
        loss = plain_atomformer.s2ef_loss
        value, gradient = jax.value_and_grad(loss)(params, config, batch.structure, energy, known, forces)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    step = jax.jit(update, donate_argnums=(0, 1))
    state = jax.tree.map(jnp.copy, params), optimizer.init(params)

    def call() -> Any:
        nonlocal state
        *state, value = step(*state)
        return state[0], value

    return call


def torch_calls(size: str, batch: StructureExample) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward pass and training step in PyTorch."""
    import torch

    from benchmarks.baselines import atomformer_torch as plain_atomformer_torch

    model = plain_atomformer_torch.Structure2EnergyAndForces(**SIZES[size])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    structure = batch.structure
    inputs = {
        "input_ids": torch.tensor(structure.tokens, dtype=torch.long),
        "coords": torch.tensor(structure.positions),
        "attention_mask": torch.tensor(structure.mask, dtype=torch.long),
    }
    labels = {
        "formation_energy": torch.tensor(batch.targets["formation_energy"]),
        "has_formation_energy": torch.ones(len(batch.index), dtype=torch.bool),
        "forces": torch.tensor(batch.targets["forces"]),
    }

    def forward() -> None:
        with torch.no_grad():
            model(*inputs.values())

    def step() -> None:
        optimizer.zero_grad()
        model.loss({**inputs, **labels}).backward()
        optimizer.step()

    return forward, step


def matrix_flops(config: AtomformerConfig, structures: int, atoms: int) -> float:
    """Floating-point operations of the matrix products in one forward pass of the published architecture."""
    rows, hidden = atoms + 1, config.mlp_ratio * config.dim
    projections = rows * config.dim * (hidden + 3 * config.dim) + rows * (hidden + config.dim) * 2 * config.dim
    attention = 2 * rows * rows * config.dim
    return 2.0 * structures * config.depth * (projections + attention)


def measure_memory(atom_counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Temporary bytes of a compiled training step, ours and plain, for two depths: 8 structures, tiny otherwise."""
    rows = []
    for atoms in atom_counts:
        row: dict[str, Any] = {"benchmark": "memory", "structures": 8, "atoms": atoms, "k": 128, "temporary_mib": {}}
        for depth in (4, 16):
            config = model_config("tiny", depth=depth)
            params, _ = make_transformer(jax.random.key(0), config)
            batch = jax.tree.map(jnp.asarray, make_batch(8, atoms))
            loss = make_example_loss(config, LOSS, {"formation_energy": 1.0, "forces": 3.0 * atoms})

            def ours(params, batch, loss=loss):
                return jnp.mean(jax.vmap(loss, in_axes=(None, None, 0))(params, None, batch)[0])

            def plain(params, batch, config=config):
                energy, forces = batch.targets["formation_energy"], batch.targets["forces"]
                known = jnp.ones(energy.shape, bool)
                return plain_atomformer.s2ef_loss(params, config, batch.structure, energy, known, forces)

            for name, function in (("ours", ours), ("plain", plain)):
                compiled = jax.jit(jax.grad(function)).lower(params, batch).compile()
                found = compiled.memory_analysis()
                assert found is not None  # available on CPU and GPU
                row["temporary_mib"][f"{name}, depth {depth}"] = found.temp_size_in_bytes / 2**20
        rows.append(row)
    return rows


def measure_epoch(options: Options) -> dict[str, Any]:
    """Seconds of an epoch over mixed sizes from the time of a step for each length."""
    counts = mixed_counts()
    if options.quick:
        counts = np.minimum(counts, 20)
    config = model_config("tiny")
    params, _ = make_transformer(jax.random.key(0), config)
    batch_size = 8
    seconds: dict[int, float] = {}
    row: dict[str, Any] = {"benchmark": "epoch", "size": "tiny", "structures": len(counts), "batch": batch_size}
    for name, buckets in (("bucketed", bucket_lengths(counts)), ("padded", (int(counts.max()),))):
        plan = make_batch_plan(counts, batch_size, buckets, seed=0)
        lengths = [planned.length for planned in plan.epoch(0)]
        for length in set(lengths) - seconds.keys():
            call = our_step(params, config, make_batch(batch_size, length))
            seconds[length] = time_calls({"step": call}, options.repeats)["step"]["steady_s"]
        row[f"{name}_s"] = sum(seconds[length] for length in lengths)
        row[f"{name}_lengths"] = {str(length): lengths.count(length) for length in sorted(set(lengths))}
    return {**row, "ratio": row["padded_s"] / row["bucketed_s"]}


def mixed_counts() -> np.ndarray:
    """Numbers of atoms of 3BPA, acetylacetone, silicon and molybdenum structures."""
    files = [DATA / f"{name}.extxyz.gz" for name in MIXED]
    if not all(file.exists() for file in files):
        return np.repeat(list(MIXED_COUNTS), list(MIXED_COUNTS.values()))
    return np.array([len(structure) for file in files for structure in read_structures(file)[0]])


if __name__ == "__main__":
    main(tyro.cli(Options))
