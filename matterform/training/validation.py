"""A held-out data set and its mean metrics."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from matterform.training.batches import BatchPlan, Take, load_batches
from matterform.training.mesh import to_global
from matterform.training.step import Evaluate, mean_metrics


class Validation(NamedTuple):
    """Validation data, with the compiled evaluation."""

    evaluate: Evaluate
    plan: BatchPlan
    take: Take


def run_validation(validation: Validation, params: Any, mesh: Mesh) -> dict[str, float]:
    """Weighted means of the metrics over all examples of the validation set.

    Raises:
        ValueError: the total weight of the examples is zero.
    """
    plan = validation.plan
    shares = {"process": jax.process_index(), "num_processes": jax.process_count()}
    batches = load_batches(plan, validation.take, 0, plan.batches_per_epoch, **shares)
    return mean_metrics(validation.evaluate(params, to_global(mesh, batch)) for batch in batches)
