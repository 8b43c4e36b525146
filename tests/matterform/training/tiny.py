"""A training run that takes a second: an MLP with dropout on sequences of numbers; also run as a process of its own."""

import argparse
import itertools
import json
import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np

from matterform.training.batches import make_batch_plan
from matterform.training.checkpoint import Checkpoints
from matterform.training.config import LoopConfig, OptimizerConfig
from matterform.training.loop import FitResult, FitSetup, fit, metric_columns
from matterform.training.mesh import initialize_distributed, make_mesh
from matterform.training.metrics import open_metrics
from matterform.training.optimizers import make_optimizer
from matterform.training.state import init_state
from matterform.training.step import make_eval_step, make_train_step
from matterform.training.validation import Validation

BUCKETS = (4, 8)
NUM_EXAMPLES = 50
BATCH_SIZE = 8  # 7 batches an epoch
LENGTHS = np.random.default_rng(1).integers(1, 9, NUM_EXAMPLES)
VALUES = np.random.default_rng(2).normal(size=(NUM_EXAMPLES, 8)).astype(np.float32)


def take(indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Sequences cut to a bucket's length, with the mask of their real entries."""
    mask = np.arange(length) < LENGTHS[indices, None]
    return {"values": VALUES[indices, :length] * mask, "mask": mask}


def init_params() -> dict[str, np.ndarray]:
    """Weights of a two-layer network on single numbers."""
    rng = np.random.default_rng(3)
    return {"hidden": rng.normal(size=(1, 16)).astype(np.float32), "out": rng.normal(size=16).astype(np.float32) / 4}


def example_loss(params, key, example):
    """Squared error of a masked sum of an MLP with dropout, against the square of the sum of the values."""
    hidden = jnp.tanh(example["values"][:, None] * params["hidden"])
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 0.5, hidden.shape[-1:])[None], 2 * hidden, 0)
    output = jnp.sum(jnp.where(example["mask"], hidden @ params["out"], 0))
    error = output - jnp.sum(example["values"])
    return error**2, {"absolute": jnp.abs(error)}


def train(
    folder: pathlib.Path, max_steps: int, *, resume: bool = False, stop_at: int = 0, delay_s: float = 0, **options
) -> FitResult:
    """Trains in `folder` up to `max_steps`; `options` go to LoopConfig, `on_epoch_end` to fit.

    With `stop_at`, the process sends itself SIGTERM when it loads that batch; each takes `delay_s` to load.
    """
    mesh = make_mesh()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.03, clip_norm=1.0))
    step = make_train_step(example_loss, optimizer, jax.random.key(0), mesh, ema_decay=0.9)
    state = init_state(init_params(), optimizer, mesh, ema=True)
    plan = make_batch_plan(LENGTHS, BATCH_SIZE, BUCKETS, seed=4)
    checkpoints, best = Checkpoints(folder / "checkpoints", keep=2), Checkpoints(folder / "best", keep=1)
    state, extra = checkpoints.restore(state) if resume else (state, None)
    writer = open_metrics(folder, metric_columns(["absolute"]), resumed_step=int(state.step) if resume else None)

    loaded = itertools.count(1)

    def take_and_stop(indices, length):
        if next(loaded) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(delay_s)
        return take(indices, length)

    on_epoch_end = options.pop("on_epoch_end", None)
    try:
        setup = FitSetup(
            config=LoopConfig(**{"log_every": 3, "checkpoint_every": 5, **options}, max_steps=max_steps),
            step=step,
            mesh=mesh,
            plan=plan,
            take=take_and_stop,
            validation=Validation(make_eval_step(example_loss, mesh), plan, take),
            checkpoints=checkpoints,
            best=best,
            writer=writer,
            on_epoch_end=on_epoch_end,
        )
        return fit(setup, state, extra)
    finally:
        writer.close()
        checkpoints.close()
        best.close()


def main() -> None:
    """Trains as one process of perhaps several, and leaves the final parameters in `params_<process>.npz`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("max_steps", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop-at", type=int, default=0)
    parser.add_argument("--coordinator")
    parser.add_argument("--process", type=int, default=0)
    args = parser.parse_args()
    if args.coordinator is not None:
        initialize_distributed(args.coordinator, 2, args.process)
    result = train(args.folder, args.max_steps, resume=args.resume, stop_at=args.stop_at)
    np.savez(args.folder / f"params_{args.process}.npz", **result.state.params)
    devices = {"devices": jax.device_count(), "processes": jax.process_count()}
    print(json.dumps({"outcome": result.outcome, "step": int(result.state.step), **devices}))  # noqa: T201


if __name__ == "__main__":
    main()
