"""Rollouts: crystals sampled from the policy, with their log-probabilities and rewards."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from crystalformer.config import TransformerConfig
from crystalformer.data.batches import make_take
from crystalformer.data.crystals import Crystals
from crystalformer.data.primitive import build_structures
from crystalformer.loss import LogProb, log_prob
from crystalformer.network.parameters import Params
from crystalformer.rl.ppo.loss import PpoExample
from crystalformer.rl.reward.base import Reward, Scores
from crystalformer.sampling.sample import sample
from matterform.training.batches import Take
from matterform.training.mesh import make_local_mesh, replicate, together

if TYPE_CHECKING:
    from pymatgen.core import Structure


class Policy(NamedTuple):
    """The network that is fine-tuned, with the weights to sample from."""

    params: Params
    config: TransformerConfig


class Rollout(NamedTuple):
    """Samples of all processes, on the host; only `local` is limited to the samples of this process."""

    crystals: Crystals
    logp: LogProb  # under the weights that sampled them
    logp_reference: Float[np.ndarray, " b"]  # under the reference model
    rewards: Float[np.ndarray, " b"]
    failed: Bool[np.ndarray, " b"]  # no structure or no reward; `rewards` then has the reward's worst value
    details: dict[str, Float[np.ndarray, " b"]]  # see `Scores`
    local: Scores


class Stopwatch:
    """Seconds spent in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the duration of the block to `seconds[name]`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def roll_out(
    policy: Policy,
    reference: Params,
    reward: Reward,
    key: PRNGKeyArray,
    spacegroups: Int[np.ndarray, " b"],
    watch: Stopwatch,
    part_size: int = 64,
) -> Rollout:
    """Samples a crystal for each space group and scores it; each process does an equal share and returns all samples.

    The samples depend only on `key` and the weights, not on the number of devices and processes.

    Args:
        reference: weights of the reference model.
        watch: collects the duration of each phase.
        part_size: crystals per device whose log-probabilities are computed at once; limits the memory.

    Raises:
        ValueError: the batch cannot be split evenly among processes, or the reward returns invalid values.
    """
    first, own = _own_share(spacegroups)
    with watch.phase("sampling"):
        params = replicate(make_local_mesh(), policy.params)
        crystals = sample(params, policy.config, key, own, first_index=first)
    with watch.phase("likelihood"):
        logp = log_prob(params, policy.config, crystals, part_size)
        logp_reference = log_prob(reference, policy.config, crystals, part_size).total
    with watch.phase("building"):
        structures, problems = build_structures(crystals)
    with watch.phase("reward"), together("the reward"):
        scores = score_built(reward, structures, problems)
    failed = np.array([bool(problem) for problem in scores.problems])
    arrays = (crystals, logp, logp_reference, scores.values, failed, scores.details)
    return Rollout(*_gather(arrays), local=scores)


def score_built(reward: Reward, structures: "Sequence[Structure | None]", problems: Sequence[str]) -> Scores:
    """Scores the structures that could be built; the others (None, with a problem) get the worst value.

    Raises:
        ValueError: the reward does not return one finite value per structure.
    """
    built = [index for index, structure in enumerate(structures) if structure is not None]
    scores = reward.score([structures[index] for index in built])  # pyright: ignore[reportArgumentType]
    if np.shape(scores.values) != (len(built),) or len(scores.problems) != len(built):
        raise ValueError(
            f"reward {reward.name}: expected {len(built)} values and problems, one per structure; got "
            f"{np.shape(scores.values)} values, {len(scores.problems)} problems"
        )
    if not np.isfinite(scores.values).all():
        where = int(np.flatnonzero(~np.isfinite(scores.values))[0])
        raise ValueError(
            f"reward {reward.name}: value {scores.values[where]} for structure {where} "
            f"({structures[built[where]].composition.reduced_formula}); expected a finite number"  # pyright: ignore
        )
    return Scores(
        _spread(scores.values, built, len(structures), reward.worst),
        _spread_list(scores.problems, built, list(problems)),
        {name: _spread(values, built, len(structures), np.nan) for name, values in scores.details.items()},
        None if scores.relaxed is None else _spread_list(scores.relaxed, built, [None] * len(structures)),
    )


def _spread(values: Float[np.ndarray, " k"], places: list[int], number: int, rest: float) -> Float[np.ndarray, " b"]:
    result = np.full(number, rest, np.float64)
    result[places] = values
    return result


def _spread_list(values: Sequence[Any], places: list[int], rest: list[Any]) -> list[Any]:
    for place, value in zip(places, values, strict=True):
        rest[place] = value
    return rest


def samples_per_process(batch_size: int) -> int:
    """Number of samples per process.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes.
    """
    size, rest = divmod(batch_size, jax.process_count())
    if rest:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes; got {batch_size}, {jax.process_count()}"
        )
    return size


def _own_share(spacegroups: Int[np.ndarray, " b"]) -> tuple[int, Int[np.ndarray, " k"]]:
    size = samples_per_process(len(spacegroups))
    first = jax.process_index() * size
    return first, spacegroups[first : first + size]


def make_example_take(rollout: Rollout, advantage: Float[np.ndarray, " b"]) -> Take:
    """A function that gathers `PpoExample`s of a rollout, cut to a bucket's length."""
    take_crystals = make_take(rollout.crystals)

    def take(rows: np.ndarray, length: int) -> PpoExample:
        columns = (rollout.logp.total, rollout.logp_reference, advantage)
        return PpoExample(take_crystals(rows, length), *(np.asarray(column[rows], np.float32) for column in columns))

    return take


def gather_crystals(crystals: Crystals, most: int) -> Crystals:
    """Concatenates the crystals of all processes, which have at most `most` each."""
    if jax.process_count() == 1:
        return crystals
    filled = jax.tree.map(lambda x: np.pad(x, [(0, most - len(x))] + [(0, 0)] * (x.ndim - 1)), crystals)
    gathered = _gather(filled)
    return jax.tree.map(lambda x: x[gathered.G > 0], gathered)


def _gather(tree: Any) -> Any:
    """Arrays of all processes, concatenated in process order; sent as bytes, because JAX rounds float64 to float32."""
    if jax.process_count() == 1:
        return tree
    arrays = jax.tree.map(np.asarray, tree)
    raw = jax.tree.map(lambda x: np.ascontiguousarray(x)[..., None].view(np.uint8), arrays)
    gathered = multihost_utils.process_allgather(raw, tiled=True)
    return jax.tree.map(lambda x, own: np.ascontiguousarray(x).view(own.dtype)[..., 0], gathered, arrays)
