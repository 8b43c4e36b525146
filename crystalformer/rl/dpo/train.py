"""Direct preference optimisation: weights move towards the chosen crystal of every pair, away from the rejected one.

A run folder holds what a training run's does (crystalformer.training); reference.pkl, the weights it started from;
pairs.csv, the rows of the pairs and their log-probabilities under these; and refused.csv, the rows that give no pair.
"""

import csv
import logging
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from crystalformer.checkpoint.pretrained import load_model
from crystalformer.checkpoint.publish import make_publisher, publish_results
from crystalformer.checkpoint.published import load_checkpoint, save_checkpoint
from crystalformer.config import TransformerConfig
from crystalformer.data.batches import bucket_lengths, make_take
from crystalformer.data.crystals import Crystals, check_crystals, num_slots
from crystalformer.loss import crystal_log_prob, log_prob
from crystalformer.network.parameters import Params, as_network
from crystalformer.rl.config import DpoConfig, PreferenceConfig
from crystalformer.rl.dpo.pairs import PairData, Pairs, pairs_from_scores, read_pairs, take_crystals
from matterform.io.files import existing, write_atomically
from matterform.training.batches import BatchPlan, Take, make_batch_plan
from matterform.training.loop import FitResult, Validation, fit, last_step, metric_columns
from matterform.training.mesh import make_mesh
from matterform.training.optimizers import make_optimizer
from matterform.training.run import check_data, check_run, claim_run, open_run
from matterform.training.state import init_state
from matterform.training.step import ExampleLoss, make_eval_step, make_train_step

logger = logging.getLogger(__name__)

METRICS = ("accuracy", "ranked", "margin", "logp_chosen", "logp_rejected", "reward_chosen", "reward_rejected")
# A resumed run may train longer, report elsewhere, find its data and first weights elsewhere; the rest must stay.
FREE = ("run_dir", "loop", "workers", "keep", "publish_every", "wandb_project", "chosen", "rejected", "scored")
FREE += ("weights.model",)
VALIDATION_KEY = 1  # folded into the seed where held-out pairs are split off
IMPOSSIBLE = -1e6  # the network gives what its masks forbid about -1e10, whose differences are only rounding


class Example(NamedTuple):
    """A pair with the log-probabilities of (chosen, rejected) under the reference."""

    chosen: Crystals
    rejected: Crystals
    reference: Float[Any, "*b 2"]


def preference_loss(
    margin: Float[Array, "*b"], logp_chosen: Float[Array, "*b"], config: PreferenceConfig
) -> Float[Array, "*b"]:
    """The loss of pairs from their margin m and log p(chosen); see `PreferenceConfig` for the formulas."""
    if config.loss == "ipo":
        loss = (margin - 1 / (2 * config.beta)) ** 2
    else:
        right, wrong = jax.nn.log_sigmoid(config.beta * margin), jax.nn.log_sigmoid(-config.beta * margin)
        loss = -(1 - config.label_smoothing) * right - config.label_smoothing * wrong
    return loss - config.gamma * logp_chosen


def make_pair_loss(transformer: TransformerConfig, preference: PreferenceConfig, dropout: bool = False) -> ExampleLoss:
    """The loss of one `Example` and its metrics, as `matterform.training` takes it.

    `accuracy` is the share of pairs with a positive `margin` m, `ranked` that of pairs whose chosen crystal is the
    likelier one; `reward_*` are beta (log p - log p_reference).
    """

    def example_loss(params: Params, key: PRNGKeyArray | None, example: Example):
        network = as_network(params, transformer)
        both = jax.tree.map(lambda chosen, rejected: jnp.stack([chosen, rejected]), example.chosen, example.rejected)
        keys = jax.random.split(key) if dropout and key is not None else None

        def total(key: PRNGKeyArray | None, crystal: Crystals) -> Float[Array, ""]:
            return crystal_log_prob(network, key, crystal, transformer).total

        logp = jax.vmap(total, in_axes=(None if keys is None else 0, 0))(keys, both)
        gain = logp - example.reference
        margin = gain[0] - gain[1]
        metrics = {
            "accuracy": (margin > 0).astype(jnp.float32),
            "ranked": (logp[0] > logp[1]).astype(jnp.float32),
            "margin": margin,
            "logp_chosen": logp[0],
            "logp_rejected": logp[1],
            "reward_chosen": preference.beta * gain[0],
            "reward_rejected": preference.beta * gain[1],
        }
        return preference_loss(margin, logp[0], preference), metrics

    return example_loss


def train_dpo(config: DpoConfig, resume: bool = False) -> FitResult:
    """Trains on pairs until the loop ends, is interrupted or stops early; returns its result.

    Raises:
        ValueError: if the run folder holds another run, nothing to resume, or the pairs do not fit the network.
        FloatingPointError: if the loss is not finite.
    """
    check_run(config, resume, FREE)
    mesh = make_mesh()
    _check_batch_size(config, mesh.size)
    start = load_checkpoint(existing(config.run_dir / "reference.pkl")) if resume else load_model(config.weights)
    data = load_pairs(config, start.config)
    if resume:
        reference = read_reference(config.run_dir, data)
    else:
        reference = reference_log_prob(start.params, start.config, data.pairs)
    prints = {"pairs": fingerprint(data.pairs, reference)}
    check_data(config, prints, resume)
    train, validation = split_examples(_possible(data, reference), config)
    example_loss = make_pair_loss(start.config, config.preference, config.dropout)
    plan = _plan(train, config)
    optimizer = make_optimizer(config.optimizer, last_step(config.loop, plan))
    state = init_state(start.params, optimizer, mesh)
    step_key = jax.random.key(config.seed)
    step = make_train_step(example_loss, optimizer, step_key, mesh, accumulate=config.accumulate)
    held_out = None
    if validation is not None:
        held_out = Validation(make_eval_step(example_loss, mesh), _plan(validation, config), _taker(validation))
    if jax.process_index() == 0 and not resume:  # before the claim: a folder that is claimed can be resumed
        save_checkpoint(config.run_dir / "reference.pkl", start.params, config=start.config)
        _write_rows(config.run_dir, data, reference)
    claim_run(config, prints, resume)
    _log_examples(train, validation, mesh.size)
    with open_run(config, metric_columns(METRICS, validation is not None), state, resume) as run:
        result = fit(
            config.loop,
            step,
            run.state,
            mesh,
            plan,
            _taker(train),
            validation=held_out,
            checkpoints=run.checkpoints,
            best=run.best,
            writer=run.writer,
            resumed=run.resumed,
            on_epoch_end=make_publisher(config.run_dir, start.config, config.publish_every),
        )
        if result.outcome != "interrupted":
            publish_results(config.run_dir, start.config, result, run.best, plan.batches_per_epoch)
    return result


def load_pairs(config: DpoConfig, transformer: TransformerConfig) -> PairData:
    """The pairs of a run, in the order of their files; the same whenever it is resumed.

    Raises:
        ValueError: if not exactly one source is given, it gives no pair, or the network cannot read one.
    """
    sizes = {"n_max": transformer.n_max, "workers": config.workers}
    two_files = config.chosen is not None or config.rejected is not None
    if two_files == (config.scored is not None):
        raise ValueError("give the pairs as chosen and rejected, or as one scored table")
    if config.scored is not None:
        data = pairs_from_scores(config.scored, config.pairing, **sizes)
    elif config.chosen is not None and config.rejected is not None:
        data = read_pairs(config.chosen, config.rejected, **sizes)
    else:
        missing = "chosen" if config.chosen is None else "rejected"
        raise ValueError(f"chosen and rejected go together; {missing} is missing")
    if data.refused:
        row, reason = next(iter(data.refused.items()))
        logger.warning("%d rows give no pair; the first is row %d: %s", len(data.refused), row, reason)
    for name, crystals in data.pairs._asdict().items():
        try:
            check_crystals(crystals, transformer)
        except ValueError as error:
            raise ValueError(f"the {name} crystals of {config.train}: {error}") from error
    return data


def reference_log_prob(params: Params, config: TransformerConfig, pairs: Pairs) -> Float[np.ndarray, "p 2"]:
    """log p of the chosen and of the rejected crystals, without dropout."""
    return np.stack([log_prob(params, config, crystals).total for crystals in pairs], -1).astype(np.float32)


def read_reference(run_dir: pathlib.Path, data: PairData) -> Float[np.ndarray, "p 2"]:
    """The log-probabilities that the run began with, from its pairs.csv.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: they are of other pairs.
    """
    path = existing(run_dir / "pairs.csv")
    with path.open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    if [[int(cell) for cell in row[:2]] for row in rows] != data.rows.tolist():
        raise ValueError(f"cannot resume with other data: {path} names other rows than the files now give")
    return np.array([[float(cell) for cell in row[2:]] for row in rows], np.float32).reshape(-1, 2)


def fingerprint(pairs: Pairs, reference: Float[np.ndarray, "p 2"]) -> dict[str, int]:
    """Number of pairs, and checksums of all their numbers and of the reference's log-probabilities."""
    checksum = 0
    for field in (*pairs.chosen, *pairs.rejected):
        checksum = zlib.crc32(np.ascontiguousarray(field).tobytes(), checksum)
    return {"pairs": len(reference), "crc32": checksum, "reference_crc32": zlib.crc32(reference.tobytes())}


def split_examples(examples: Example, config: DpoConfig) -> tuple[Example, Example | None]:
    """Pairs to train on, and held-out ones (None where there are none)."""
    count = len(examples.reference)
    held_out = round(config.validation_fraction * count)
    if held_out == 0:
        return examples, None
    if held_out == count:
        raise ValueError(f"validation_fraction {config.validation_fraction} leaves none of {count} pairs to train on")
    order = np.random.default_rng([config.seed, VALIDATION_KEY]).permutation(count)
    return _take(examples, order[held_out:]), _take(examples, order[:held_out])


def _check_batch_size(config: DpoConfig, devices: int) -> None:
    """Before the folder is claimed: a step would find the same, too late."""
    parts = devices * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of devices x accumulate = {devices} x {config.accumulate} = {parts}; "
            f"got {config.batch_size}"
        )


def _possible(data: PairData, reference: Float[np.ndarray, "p 2"]) -> Example:
    """The pairs that the network can read: others have letters that its masks forbid, such as unsorted ones."""
    possible = (reference > IMPOSSIBLE).all(-1)
    if not possible.all():
        first = int(np.argmin(possible))
        logger.warning(
            "%d pairs left out, to which the weights give no probability; the first is of rows %d and %d",
            *(int((~possible).sum()), *data.rows[first]),
        )
    if not possible.any():
        raise ValueError("the weights give none of the pairs a probability; their sites must be sorted by W")
    return _take(Example(data.pairs.chosen, data.pairs.rejected, reference), np.flatnonzero(possible))


def _take(examples: Example, rows: np.ndarray) -> Example:
    chosen, rejected = (take_crystals(crystals, rows) for crystals in (examples.chosen, examples.rejected))
    return Example(chosen, rejected, examples.reference[rows])


def _plan(examples: Example, config: DpoConfig) -> BatchPlan:
    """Batches of pairs of like length, which is that of the longer crystal."""
    longer = np.maximum(num_slots(examples.chosen), num_slots(examples.rejected))
    return make_batch_plan(longer, config.batch_size, bucket_lengths(examples.chosen.W.shape[1]), config.seed)


def _taker(examples: Example) -> Take:
    """Gathers pairs cut to a bucket's length."""

    take_chosen, take_rejected = make_take(examples.chosen), make_take(examples.rejected)

    def take(rows: np.ndarray, length: int) -> Example:
        return Example(take_chosen(rows, length), take_rejected(rows, length), examples.reference[rows])

    return take


def _write_rows(run_dir: pathlib.Path, data: PairData, reference: Float[np.ndarray, "p 2"]) -> None:
    """pairs.csv and refused.csv; numbers are written so that reading them gives the same float."""
    with write_atomically(run_dir / "refused.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("row", "reason"), *data.refused.items()])
    with write_atomically(run_dir / "pairs.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["chosen_row", "rejected_row", "reference_logp_chosen", "reference_logp_rejected"])
        for rows, values in zip(data.rows.tolist(), reference.astype(np.float64).tolist(), strict=True):
            table.writerow([*rows, *map(repr, values)])


def _log_examples(train: Example, validation: Example | None, num_devices: int) -> None:
    held_out = 0 if validation is None else len(validation.reference)
    logger.info("%d pairs to train on, %d held out, %d devices", len(train.reference), held_out, num_devices)
    for name, examples in (("training", train), ("held-out", validation)):
        if examples is not None:
            ranked = float(np.mean(examples.reference[:, 0] > examples.reference[:, 1]))
            logger.info("before training, the chosen crystal is the likelier one in %.3f of the %s pairs", ranked, name)
