"""One epoch's crystals with their log-probabilities and rewards."""

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
from crystalformer.rl.ppo.loss import Example
from crystalformer.rl.reward.base import Reward, Scores
from crystalformer.sampling.sample import sample
from matterform.training.batches import Take
from matterform.training.mesh import make_local_mesh, replicate, together

if TYPE_CHECKING:
    from pymatgen.core import Structure


class Policy(NamedTuple):
    """A network that crystals are drawn from."""

    params: Params
    config: TransformerConfig


class Rollout(NamedTuple):
    """What all processes drew together, on the host; `local` is what this process built and scored of it."""

    crystals: Crystals
    logp: LogProb  # under the weights that drew them
    logp_reference: Float[np.ndarray, " b"]
    rewards: Float[np.ndarray, " b"]
    failed: Bool[np.ndarray, " b"]  # not built or not evaluated; they have the reward's worst value
    details: dict[str, Float[np.ndarray, " b"]]
    local: Scores


class Stopwatch:
    """Seconds spent in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
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
    """Draws a crystal for each space group, and scores it; every process does an equal share, and gets all.

    The crystals depend on `key` and the weights only, whatever the number of devices and processes.

    Raises:
        ValueError: the processes cannot share the crystals evenly, or the reward is not what it should be.
    """
    first, mine = _my_share(spacegroups)
    with watch.phase("sampling"):
        params = replicate(make_local_mesh(), policy.params)
        crystals = sample(params, policy.config, key, mine, first_index=first)
    with watch.phase("likelihood"):
        logp = log_prob(params, policy.config, crystals, part_size)
        logp_reference = log_prob(reference, policy.config, crystals, part_size).total
    with watch.phase("building"):
        structures, problems = build_structures(crystals)
    with watch.phase("reward"), together("the reward"):
        scores = score_built(reward, structures, problems)
    failed = np.array([bool(problem) for problem in scores.problems])
    arrays = (crystals, logp, logp_reference, scores.values, failed, scores.details)
    return Rollout(*_of_all_processes(arrays), local=scores)


def score_built(reward: Reward, structures: "Sequence[Structure | None]", problems: Sequence[str]) -> Scores:
    """Scores of what could be built; the rest, None with its problem, gets the worst value.

    Raises:
        ValueError: the reward gives something else than one finite value for each structure.
    """
    built = [index for index, structure in enumerate(structures) if structure is not None]
    scores = reward.score([structures[index] for index in built])  # pyright: ignore[reportArgumentType]
    if np.shape(scores.values) != (len(built),) or len(scores.problems) != len(built):
        raise ValueError(
            f"reward {reward.name}: expected {len(built)} values and problems, one a structure; got "
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


def share_of(batch_size: int) -> int:
    """How many crystals of a batch each process draws.

    Raises:
        ValueError: the processes cannot share them evenly.
    """
    size, rest = divmod(batch_size, jax.process_count())
    if rest:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes; got {batch_size}, {jax.process_count()}"
        )
    return size


def _my_share(spacegroups: Int[np.ndarray, " b"]) -> tuple[int, Int[np.ndarray, " k"]]:
    size = share_of(len(spacegroups))
    first = jax.process_index() * size
    return first, spacegroups[first : first + size]


def take_examples(rollout: Rollout, advantage: Float[np.ndarray, " b"]) -> Take:
    """The function that gathers what the PPO loss needs of some crystals, cut to a length."""
    take_crystals = make_take(rollout.crystals)

    def take(rows: np.ndarray, length: int) -> Example:
        columns = (rollout.logp.total, rollout.logp_reference, advantage)
        return Example(take_crystals(rows, length), *(np.asarray(column[rows], np.float32) for column in columns))

    return take


def gather_crystals(crystals: Crystals, most: int) -> Crystals:
    """The crystals of all processes, of which each has at most `most`."""
    if jax.process_count() == 1:
        return crystals
    filled = jax.tree.map(lambda x: np.pad(x, [(0, most - len(x))] + [(0, 0)] * (x.ndim - 1)), crystals)
    everyones = _of_all_processes(filled)
    return jax.tree.map(lambda x: x[everyones.G > 0], everyones)


def _of_all_processes(tree: Any) -> Any:
    """Arrays of all processes, joined in their order; as bytes, since JAX would round float64 to float32."""
    if jax.process_count() == 1:
        return tree
    arrays = jax.tree.map(np.asarray, tree)
    raw = jax.tree.map(lambda x: np.ascontiguousarray(x)[..., None].view(np.uint8), arrays)
    everyones = multihost_utils.process_allgather(raw, tiled=True)
    return jax.tree.map(lambda x, own: np.ascontiguousarray(x).view(own.dtype)[..., 0], everyones, arrays)
