"""Checkpoints of the training state: `<directory>/<step>/`, written atomically by orbax."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from matterform.training.state import TrainState


class Checkpoints:
    """The newest `keep` training states in a directory, each with a small JSON object.

    With several processes, each must make the same calls, and all must share the directory.
    Orbax writes under a temporary name and renames at the end; incomplete directories are never read.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 3) -> None:
        import orbax.checkpoint as ocp  # slow to import, and not needed for inference

        if keep < 1:
            raise ValueError(f"keep must be at least 1; got {keep}")
        self.directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._steps = complete_steps(self.directory)
        # We choose what to delete, because orbax counts incomplete directories as checkpoints.
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, max_to_keep=None)
        handlers = {"state": ocp.StandardCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return max(self._steps, default=None)

    def save(self, state: TrainState, extra: Mapping[str, Any] | None = None) -> None:
        """Writes `state`, then deletes all but the newest `keep` checkpoints, and those of later steps.

        Checkpoints of later steps exist if training was resumed from an older one; they no longer belong to the run.
        """
        import orbax.checkpoint as ocp

        step = int(state.step)
        if step in self._manager.all_steps():
            self._manager.delete(step)
        items = {"state": ocp.args.StandardSave(state), "extra": ocp.args.JsonSave(dict(extra or {}))}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        earlier = [old for old in self._steps if old < step]
        kept = [*earlier, step][-self._keep :]
        for old in self._steps:
            if old not in kept and old != step:
                self._manager.delete(old)
        self._steps = kept

    def restore(self, template: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Reads the state of `step` (default: the newest), placed on devices like `template`, and its JSON object.

        Raises:
            ValueError: the checkpoint does not exist or does not fit the template.
        """
        import orbax.checkpoint as ocp

        wanted = self.latest_step() if step is None else step
        if wanted is None or wanted not in self._steps:
            sought = "complete checkpoint" if step is None else f"complete checkpoint of step {step}"
            raise ValueError(
                f"{self.directory} holds no {sought} (found {self._steps}); train afresh, without resuming"
            )
        self._check_fit(wanted, template)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
        items = {"state": ocp.args.StandardRestore(shapes), "extra": ocp.args.JsonRestore()}
        restored = self._manager.restore(wanted, args=ocp.args.Composite(**items))
        return restored["state"], restored["extra"]

    def _check_fit(self, step: int, template: TrainState) -> None:
        """Raises ValueError if the leaves of the template differ from those of the checkpoint."""
        found = _describe_leaves(self._manager.item_metadata(step)["state"].tree)
        _compare(self.directory / str(step), found, _describe_leaves(template), "model and optimiser")

    def close(self) -> None:
        """Closes the directory."""
        self._manager.close()


def load_inference_params(directory: str | pathlib.Path, template: Any) -> Any:
    """Loads parameters for inference from the newest checkpoint: the moving average if there is one.

    Args:
        template: a tree of arrays or their shapes, which the parameters must fit; the optimiser is not needed.

    Raises:
        ValueError: there is no complete checkpoint, or its parameters are of another model.
    """
    import orbax.checkpoint as ocp

    directory = pathlib.Path(directory).absolute()
    steps = complete_steps(directory)
    if not steps:
        raise ValueError(f"{directory} holds no complete checkpoint")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # not the devices of the training run
    options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)  # read_only causes a warning
    handlers = {"state": ocp.StandardCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(directory, options=options, item_handlers=handlers) as manager:
        tree = manager.item_metadata(steps[-1])["state"].tree
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree)
        name = "params" if shapes["ema"] is None else "ema"
        _compare(directory / str(steps[-1]), _describe_leaves(shapes[name]), _describe_leaves(template), "model")
        restored = manager.restore(steps[-1], args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))
    return restored["state"][name]


def complete_steps(directory: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints in `directory`, in increasing order."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and _is_committed(path))


def _is_committed(path: pathlib.Path) -> bool:
    """Whether the checkpoint is complete; orbax writes the time of completion last."""
    metadata = path / "_CHECKPOINT_METADATA"
    return metadata.is_file() and bool(json.loads(metadata.read_text()).get("commit_timestamp_nsecs"))


def _compare(path: pathlib.Path, found: Mapping[str, str], expected: Mapping[str, str], what: str) -> None:
    """Raises ValueError that names the first difference if leaves differ."""
    for name in sorted(found.keys() | expected.keys()):
        wanted, got = expected.get(name, "absent"), found.get(name, "absent")
        if wanted != got:
            raise ValueError(
                f"checkpoint {path} does not fit this {what}: {name} must be {wanted}, found {got}; "
                "use the config it was made with"
            )


def _describe_leaves(tree: Any) -> dict[str, str]:
    """Type and shape of every array in `tree`, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }
