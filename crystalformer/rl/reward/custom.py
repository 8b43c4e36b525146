"""Rewards computed by a user's function, `module:function`; its errors are reported in one line each."""

import concurrent.futures
import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from crystalformer.rl.config import RewardConfig
from crystalformer.rl.reward.base import Reward, Scores, make_scores
from matterform.errors import Explained
from matterform.plugins import load_callable
from matterform.processes import death_explained, worker_pool

if TYPE_CHECKING:
    import pymatgen.core

logger = logging.getLogger(__name__)


class Workers(NamedTuple):
    """Worker processes among which a batch of structures is split."""

    pool: concurrent.futures.Executor
    size: int


@contextlib.contextmanager
def open_workers(size: int) -> Iterator[Workers | None]:
    """Starts `size` worker processes for the duration of the block; None if `size` is 0."""
    if not size:
        yield None
        return
    with worker_pool(size) as pool:
        yield Workers(pool, size)


def custom_reward(target: str, worst: float = RewardConfig.custom_worst, workers: Workers | None = None) -> Reward:
    """The reward computed by a function: list of pymatgen Structures -> one number per structure, larger is better.

    Args:
        target: `module:function`; modules in the current folder are found.
        worst: reward of crystals that cannot be built. Lower values of the function are raised to it, with a warning
            the first time.
        workers: processes among which a batch is split; the function must then score each crystal independently.

    Raises:
        ValueError: there is no such function. `Reward.score` raises it when the function raises, or returns anything
            but finite numbers.
    """
    load_function(target)
    warned = False

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        nonlocal warned
        if not structures:  # no crystal of a batch could be built; a user's function need not handle empty lists
            values = np.zeros(0)
        elif workers is None:
            values = evaluate(target, list(structures))
        else:
            values = _evaluate_in_parts(target, structures, workers)
        if (low := values < worst).any() and not warned:
            warned = True
            logger.warning(
                "%d of %d values of the reward %s lie below %g, the reward of crystals that cannot be built, and are "
                "raised to it (logged once): lower --custom-worst to keep them apart; the lowest value is %g",
                *(low.sum(), len(values), target, worst, values.min()),
            )
        return make_scores(values, [""] * len(structures), worst)

    return Reward(target, score, worst)


def evaluate(target: str, structures: "list[pymatgen.core.Structure]") -> Float[np.ndarray, " b"]:
    """Calls the function on `structures` and checks what it returns.

    Raises:
        ValueError: the function raises, or does not return one finite number per structure.
    """
    function = load_function(target)
    with Explained(f"the reward {target}"):
        returned = np.asarray(function(structures))
    if returned.dtype.kind not in "biuf":
        raise ValueError(f"the reward {target} must return numbers; it returned {_shortened(returned)}")
    if returned.shape != (len(structures),):
        raise ValueError(
            f"the reward {target} must return one number for each of {len(structures)} structures; "
            f"it returned an array of shape {returned.shape}"
        )
    values = returned.astype(np.float64)
    if wrong := np.flatnonzero(~np.isfinite(values)).tolist():
        raise ValueError(
            f"the reward {target} must return finite numbers; it returned {values[wrong[0]]} for {len(wrong)} of "
            f"{len(values)} structures, first for {structures[wrong[0]].composition.reduced_formula}: "
            "return its worst value instead"
        )
    return values


@functools.cache
def load_function(target: str) -> "Callable[[list[pymatgen.core.Structure]], Any]":
    """The function `module:function`.

    Raises:
        ValueError: the module cannot be imported, or has no such function.
    """
    return load_callable(target, "the reward", "module:function, such as my_rewards:density")


def _evaluate_in_parts(
    target: str, structures: "Sequence[pymatgen.core.Structure]", workers: Workers
) -> Float[np.ndarray, " b"]:
    edges = np.linspace(0, len(structures), min(workers.size, len(structures)) + 1).astype(int).tolist()
    parts = [list(structures[start:end]) for start, end in itertools.pairwise(edges)]
    with death_explained(f"the reward {target} ended its worker process; memory may have run out"):
        futures = [workers.pool.submit(_evaluate_in_worker, target, part) for part in parts]
        return np.concatenate([future.result() for future in futures])


def _evaluate_in_worker(target: str, structures: "list[pymatgen.core.Structure]") -> Float[np.ndarray, " b"]:
    """`evaluate` in a worker, which ignores Ctrl-C: a KeyboardInterrupt is then an error of the function itself."""
    try:
        return evaluate(target, structures)
    except KeyboardInterrupt as error:
        raise ValueError(f"the reward {target} raised KeyboardInterrupt in its worker process") from error


def _shortened(returned: np.ndarray) -> str:
    return " ".join(repr(returned.tolist()).split())[:80]
