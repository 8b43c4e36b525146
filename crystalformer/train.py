"""Training of CrystalFormer: one config, one run folder that describes itself.

A run folder holds config.yaml, metrics.csv, TensorBoard events, checkpoints/<step>/ (to resume), best/<step>/ and
published/epoch_NNNNNN.pkl (to use).
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PRNGKeyArray

from crystalformer.checkpoint import load_checkpoint, save_checkpoint
from crystalformer.config import TransformerConfig
from crystalformer.crystal import Crystals
from crystalformer.dataset import lengths, open_dataset, read_csv, truncate
from crystalformer.likelihood import LossConfig, bucket_lengths, make_example_loss
from crystalformer.parameters import init_params
from matterform.config import load_config, save_config, to_dict
from matterform.files import write_atomically
from matterform.training.batches import BatchPlan, Take, make_batch_plan
from matterform.training.checkpoint import Checkpoints
from matterform.training.loop import FitResult, LoopConfig, Validation, fit, metric_columns
from matterform.training.mesh import make_mesh
from matterform.training.metrics import open_metrics
from matterform.training.optimizers import OptimizerConfig, make_optimizer
from matterform.training.state import TrainState, inference_params, init_state
from matterform.training.step import make_eval_step, make_train_step

logger = logging.getLogger(__name__)

PARTS = ("loss_w", "loss_xyz", "loss_a", "loss_l")
VALIDATION_KEY = 1  # folded into the seed where a validation set is split off


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run.

    `train` and `validation` are CSV files or folders that `crystalformer prepare` made. Without `validation`, a
    share `validation_fraction` of the training set is held out, drawn from `seed`.
    """

    train: pathlib.Path
    run_dir: pathlib.Path
    validation: pathlib.Path | None = None
    validation_fraction: float = 0.1
    transformer: TransformerConfig = TransformerConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig(epochs=100)
    batch_size: int = 100  # crystals a step, over all devices and processes
    accumulate: int = 1  # parts that a step is computed in, one after another, to save memory
    ema_decay: float | None = None  # a step of the moving average of the weights, 0.999 say; published instead of them
    seed: int = 42
    start_from: pathlib.Path | None = None  # a published .pkl whose weights training starts from
    publish_every: int = 50  # epochs between published files; the last epoch and the best one are always published
    keep: int = 2  # checkpoints to resume from
    workers: int = 1  # processes that read a CSV
    wandb_project: str | None = None  # report to Weights & Biases as well (extra `wandb`)

    def __post_init__(self) -> None:
        if self.validation is None and not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {self.validation_fraction}")
        for name in ("batch_size", "accumulate", "publish_every", "keep", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


class Split(NamedTuple):
    """Training crystals, and held-out ones (None without validation)."""

    train: Crystals
    validation: Crystals | None


def train(config: TrainConfig, resume: bool = False) -> FitResult:
    """Trains until the loop ends, is interrupted or stops early; returns its result.

    Raises:
        ValueError: if the run folder holds another run, nothing to resume, or the data do not fit the network.
        FloatingPointError: if the loss is not finite.
    """
    _check_run_dir(config, resume)
    split = load_split(config)
    mesh = make_mesh()
    example_loss = make_example_loss(config.transformer, config.loss)
    optimizer = make_optimizer(config.optimizer)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    params = _first_params(config, init_key, resume)
    state = init_state(params, optimizer, mesh, ema=config.ema_decay is not None)
    step = make_train_step(
        example_loss, optimizer, step_key, mesh, accumulate=config.accumulate, ema_decay=config.ema_decay
    )
    plan = _plan(split.train, config)
    validation = None
    if split.validation is not None:
        evaluate = make_eval_step(example_loss, mesh)
        validation = Validation(evaluate, _plan(split.validation, config), _taker(split.validation))
    _claim_run_dir(config, split, resume)
    with contextlib.ExitStack() as stack:
        checkpoints = _open_checkpoints(stack, config.run_dir / "checkpoints", config.keep)
        best = _open_checkpoints(stack, config.run_dir / "best", 1)
        resumed = None
        if resume:
            state, resumed = _restore(config, checkpoints, state)
        writer = open_metrics(
            config.run_dir,
            metric_columns(PARTS, validation is not None),
            resumed_step=int(state.step) if resume else None,
            tensorboard=True,
            wandb_project=config.wandb_project,
        )
        stack.callback(writer.close)
        _log_sizes(split, state, mesh.size)

        def publish_sometimes(state: TrainState, epoch: int) -> None:
            if epoch % config.publish_every == 0:
                publish(config, state, epoch)

        result = fit(
            config.loop,
            step,
            state,
            mesh,
            plan,
            _taker(split.train),
            validation=validation,
            checkpoints=checkpoints,
            best=best,
            writer=writer,
            resumed=resumed,
            on_epoch_end=publish_sometimes,
        )
        if result.outcome != "interrupted":
            _publish_results(config, result, best, plan.batches_per_epoch)
    return result


def publish(config: TrainConfig, state: TrainState, epoch: int, name: str | None = None) -> None:
    """Writes the weights for inference (the moving average where there is one) as published/epoch_NNNNNN.pkl."""
    if jax.process_index() == 0:
        folder = config.run_dir / "published"
        folder.mkdir(exist_ok=True)
        path = folder / name if name else folder
        save_checkpoint(path, inference_params(state), state.opt_state, epoch, config=config.transformer)


def load_split(config: TrainConfig) -> Split:
    """The training and validation crystals of a run; the same whenever it is resumed."""
    crystals = load_crystals(config.train, config.transformer, config.workers)
    if config.validation is not None:
        return Split(crystals, load_crystals(config.validation, config.transformer, config.workers))
    held_out = round(config.validation_fraction * len(crystals.G))
    if held_out == 0:
        return Split(crystals, None)
    if held_out == len(crystals.G):
        raise ValueError(
            f"validation_fraction {config.validation_fraction} leaves none of {held_out} crystals to train on"
        )
    order = np.random.default_rng([config.seed, VALIDATION_KEY]).permutation(len(crystals.G))
    return Split(
        *(jax.tree.map(lambda x, rows=rows: x[rows], crystals) for rows in (order[held_out:], order[:held_out]))
    )


def load_crystals(path: pathlib.Path, config: TransformerConfig, workers: int = 1) -> Crystals:
    """Crystals of a CSV file or of a folder that `prepare` made.

    Raises:
        ValueError: if none is left or they exceed the sizes of the network.
    """
    if path.is_dir():
        crystals = open_dataset(path)
    else:
        crystals, refused = read_csv(path, n_max=config.n_max, workers=workers)
        if refused:
            row, reason = next(iter(refused.items()))
            logger.warning("%s: refused %d of its rows; the first is row %d: %s", path, len(refused), row, reason)
    if not len(crystals.G):
        raise ValueError(f"{path} holds no crystal; see what `crystalformer prepare` says of its rows")
    longest = int(lengths(crystals).max())
    for name, found, limit in (
        ("n_max", longest, config.n_max),
        ("atom_types", int(crystals.A.max()) + 1, config.atom_types),
        ("wyck_types", int(crystals.W.max()) + 1, config.wyck_types),
    ):
        if found > limit:
            raise ValueError(f"{path} needs {name} of at least {found}; the network has {limit}")
    return truncate(crystals, config.n_max)


def _check_run_dir(config: TrainConfig, resume: bool) -> None:
    """Checks that the run folder is new, or holds the same run."""
    path = config.run_dir / "config.yaml"
    if resume and not path.exists():
        raise ValueError(f"{config.run_dir} holds no run to resume (no config.yaml); leave out --resume to begin one")
    if path.exists():
        if not resume:
            raise ValueError(f"{config.run_dir} holds a run already; give --resume to go on, or another --run-dir")
        _check_same_run(load_config(TrainConfig, path), config)


def _claim_run_dir(config: TrainConfig, split: Split, resume: bool) -> None:
    """Writes config.yaml and data.json; only now, so that a run whose data cannot be read leaves nothing behind.

    Raises:
        ValueError: if a resumed run would see other crystals than before.
    """
    path = config.run_dir / "data.json"
    found = {name: None if part is None else fingerprint(part) for name, part in split._asdict().items()}
    if resume and path.exists() and (former := json.loads(path.read_text(encoding="utf-8"))) != found:
        raise ValueError(f"cannot resume with other data: the run has {former}, but {config.train} gives {found}")
    if jax.process_count() > 1:  # else the first process could claim the folder before the others have looked
        multihost_utils.sync_global_devices("run folder checked")
    if jax.process_index() == 0:
        save_config(config, config.run_dir / "config.yaml")
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")


def fingerprint(crystals: Crystals) -> dict[str, int]:
    """Number of crystals, and a checksum of their groups, elements and letters in order."""
    checksum = 0
    for field in (crystals.G, crystals.A, crystals.W):
        checksum = zlib.crc32(np.asarray(field, np.int32).tobytes(), checksum)
    return {"crystals": len(crystals.G), "crc32": checksum}


def _open_checkpoints(stack: contextlib.ExitStack, folder: pathlib.Path, keep: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep)
    stack.callback(checkpoints.close)
    return checkpoints


def _restore(config: TrainConfig, checkpoints: Checkpoints, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    if checkpoints.latest_step() is None:
        raise ValueError(
            f"{config.run_dir} ended before its first checkpoint; delete it and begin anew, without --resume"
        )
    state, progress = checkpoints.restore(state)
    logger.info("resuming after step %d", int(state.step))
    return state, progress


def _log_sizes(split: Split, state: TrainState, num_devices: int) -> None:
    held_out = 0 if split.validation is None else len(split.validation.G)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    logger.info(
        "%d crystals to train on, %d held out, %d parameters, %d devices",
        *(len(split.train.G), held_out, num_parameters, num_devices),
    )


def _check_same_run(former: TrainConfig, config: TrainConfig) -> None:
    """A resumed run may train longer, report elsewhere, read faster, find its data elsewhere; the rest must stay."""
    free = ("run_dir", "loop", "workers", "keep", "publish_every", "wandb_project", "train", "validation")
    before = _flat(to_dict(former))
    for name, value in _flat(to_dict(config)).items():
        if name.split(".")[0] not in free and before[name] != value:
            raise ValueError(f"cannot resume with another {name}: the run has {before[name]}, given {value}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _first_params(config: TrainConfig, key: PRNGKeyArray, resume: bool) -> Any:
    """Fresh or published weights; a resumed run has its own, and needs these only for their shapes."""
    if config.start_from is None or resume:
        return init_params(key, config.transformer)
    return load_checkpoint(config.start_from, **to_dict(config.transformer)).params


def _plan(crystals: Crystals, config: TrainConfig) -> BatchPlan:
    return make_batch_plan(lengths(crystals), config.batch_size, bucket_lengths(crystals.W.shape[1]), config.seed)


def _taker(crystals: Crystals) -> Take:
    """Gathers rows cut to a bucket's length, in the types the network computes with."""

    def take(rows: np.ndarray, length: int) -> Crystals:
        G, L, XYZ, A, W = crystals
        return Crystals(
            G=np.asarray(G[rows], np.int32),
            L=np.asarray(L[rows], np.float32),
            XYZ=np.asarray(XYZ[rows, :length], np.float32),
            A=np.asarray(A[rows, :length], np.int32),
            W=np.asarray(W[rows, :length], np.int32),
        )

    return take


def _publish_results(config: TrainConfig, result: FitResult, best: Checkpoints, batches_per_epoch: int) -> None:
    """Publishes the last state under its epoch, and as best.pkl that of the lowest validation loss (else the last)."""
    state = result.state
    publish(config, state, int(state.step) // batches_per_epoch)
    if best.latest_step() is not None:
        state, _ = best.restore(state)
    publish(config, state, int(state.step) // batches_per_epoch, name="best.pkl")
