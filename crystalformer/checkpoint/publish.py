"""Writes the weights of a run in the published layout: published/epoch_NNNNNN.pkl, and best.pkl."""

import pathlib
from collections.abc import Callable

import jax

from crystalformer.checkpoint.published import PUBLISHED, save_checkpoint
from crystalformer.config import TransformerConfig
from matterform.training.state import TrainState, inference_params


def publish(
    run_dir: pathlib.Path, config: TransformerConfig, state: TrainState, epoch: int, name: str | None = None
) -> None:
    """Writes the weights for inference (the moving average if there is one); only the first process writes.

    `config` is saved in the same file, so that no hyper-parameters are needed to read it.
    """
    if jax.process_index() == 0:
        folder = run_dir / PUBLISHED
        folder.mkdir(exist_ok=True)
        path = folder / name if name else folder
        save_checkpoint(path, inference_params(state), state.opt_state, epoch, config=config)


def make_publisher(run_dir: pathlib.Path, config: TransformerConfig, every: int) -> Callable[[TrainState, int], None]:
    """A function for `fit` to call after each epoch; it publishes the weights every `every` epochs."""

    def publish_sometimes(state: TrainState, epoch: int) -> None:
        if epoch % every == 0:
            publish(run_dir, config, state, epoch)

    return publish_sometimes


def publish_results(
    run_dir: pathlib.Path, config: TransformerConfig, last: TrainState, best: TrainState, batches_per_epoch: int
) -> None:
    """Publishes the last state under its epoch, and the state with the lowest validation loss as best.pkl."""
    publish(run_dir, config, last, int(last.step) // batches_per_epoch)
    publish(run_dir, config, best, int(best.step) // batches_per_epoch, name="best.pkl")
