"""Trained models in run folders: hparams.yaml, checkpoints/best_model and checkpoints/last_model."""

import pathlib

from agedi.config import DiffusionConfig
from agedi.diffusion import Diffusion, network
from matterform.config import from_dict, load_values
from matterform.training.checkpoint import complete_steps, load_inference_params

HPARAMS = "hparams.yaml"
BEST, LAST = "best_model", "last_model"


def load_diffusion(path: str | pathlib.Path, checkpoint: str | None = None) -> Diffusion:
    """Loads a trained model; its weights are the moving average if training kept one.

    Args:
        path: a run folder, or its checkpoints/best_model or checkpoints/last_model.
        checkpoint: "best_model" or "last_model"; by default the one that `path` names, or else the best if there is
            one.

    Raises:
        FileNotFoundError: the run folder does not exist.
        ValueError: the folder is not a run of AGeDi, or has no such checkpoint.
    """
    run_dir, named = split_checkpoint(path)
    config = load_hparams(run_dir)
    folder = choose_checkpoint(run_dir, named if checkpoint is None else checkpoint)
    model = network(config)
    return Diffusion(config, model._replace(params=load_inference_params(folder, model.params)))


def split_checkpoint(path: str | pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """The run folder of a path, and the name of the checkpoint that the path points to, if any."""
    path = pathlib.Path(path)
    if path.parent.name == "checkpoints":
        return path.parent.parent, path.name
    return (path.parent, None) if path.name == "checkpoints" else (path, None)


def load_hparams(run_dir: pathlib.Path) -> DiffusionConfig:
    """Reads the model's configuration from the hparams.yaml of a run.

    Raises:
        FileNotFoundError: the run folder does not exist.
        ValueError: the folder is not a run of AGeDi, or its hparams.yaml is damaged.
    """
    if not run_dir.exists():
        raise FileNotFoundError(f"{run_dir} does not exist (looked from {pathlib.Path.cwd()})")
    if not (run_dir / HPARAMS).is_file():
        raise ValueError(f"{run_dir} is no run of AGeDi: it has no {HPARAMS}{_hint(run_dir)}")
    values = load_values(run_dir / HPARAMS)
    if not isinstance(values.get("diffusion"), dict):
        raise ValueError(f"{run_dir / HPARAMS} describes no diffusion model (no key 'diffusion'); found {list(values)}")
    try:
        return from_dict(DiffusionConfig, values["diffusion"])
    except ValueError as error:
        raise ValueError(f"{run_dir / HPARAMS}: {error}") from error


def choose_checkpoint(run_dir: pathlib.Path, name: str | None) -> pathlib.Path:
    """The folder of a run's checkpoint; by default the best one, or the last if there is no best.

    Args:
        name: `best_model` or `last_model`, also as `best` or `best_model.ckpt`.

    Raises:
        ValueError: the run has no complete checkpoint, or none of this name.
    """
    folders = {kind: run_dir / "checkpoints" / kind for kind in (BEST, LAST)}
    found = [kind for kind, folder in folders.items() if complete_steps(folder)]
    if not found:
        raise ValueError(f"{run_dir} has no complete checkpoint: its training was stopped before the first one")
    if name is None:
        return folders[found[0]]
    kind = name.removesuffix(".ckpt")
    kind = kind if kind.endswith("_model") else f"{kind}_model"
    if kind not in found:
        raise ValueError(f"{run_dir} has no checkpoint {name!r}; found {', '.join(found)}")
    return folders[kind]


def _hint(folder: pathlib.Path) -> str:
    """A hint for the error message: what a folder without hparams.yaml contains instead, if it is recognised."""
    if folder.is_dir() and (versions := sorted(path.name for path in folder.glob("version_*"))):
        return f"; choose one of its runs: {', '.join(versions)}"
    if (folder / "config.yaml").is_file():
        return ", but a config.yaml: a run of CrystalFormer or AtomFormer"
    return ""
