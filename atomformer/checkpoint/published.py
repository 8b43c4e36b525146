"""Reading and writing models in the published layout: a folder with `config.json` and `model.safetensors`."""

import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atomformer.checkpoint.tensors import from_published, heads_among, sizes_among, to_published
from atomformer.config import AtomformerConfig
from atomformer.data.vocabulary import BOS, EOS, GRAPH, MASK, PAD
from atomformer.network.parameters import Params
from atomformer.network.transformer import Apply, make_apply
from matterform.config import from_dict, to_dict
from matterform.io.files import existing, write_atomically

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPE = "atomformer"
RUN_CONFIG, RUN_MODEL = "config.yaml", "model"  # names inside the folder of a training run
# Our fields that `config.json` contains under their own names; all others are stored together under OUR_KEY.
PUBLISHED_FIELDS = (
    "vocab_size",
    "dim",
    "num_heads",
    "depth",
    "mlp_ratio",
    "k",
    "dropout",
    "gradient_checkpointing",
    "num_labels",
)
OUR_KEY = "matterform"
SPECIAL_TOKENS = {
    "mask_token_id": MASK,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "cls_token_id": GRAPH,
}
# Kind of labels -> its name in Transformers.
PROBLEM_TYPES = {
    "regression": "regression",
    "binary": "multi_label_classification",
    "multiclass": "single_label_classification",
}
ARCHITECTURES = {"Structure2EnergyAndForces": ("formation_energy", "forces")}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


class Pretrained(NamedTuple):
    """Parameters, config and network of a model: `apply(params, key, structure)` gives the `Outputs` of a structure."""

    params: Params
    config: AtomformerConfig
    apply: Apply


def from_pretrained(source: str | os.PathLike[str]) -> Pretrained:
    """Reads a published model.

    Args:
        source: a folder with `config.json` and `model.safetensors` (or its shards); the folder of a training run; a
            `.safetensors` file with a `config.json` beside it; or, if no such path exists, the id `organisation/name`
            of a model on Hugging Face, read from the local cache or else downloaded (needs `huggingface_hub`).

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: the files are incomplete, damaged or a pickle, the config disagrees with the weights, or a run has
            no model yet.
    """
    path = _local_path(source)
    tensors = _read_tensors(path)
    config = _read_config(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    try:
        params = from_published(tensors, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Pretrained(jax.tree.map(jnp.asarray, params), config, make_apply(config))


def save_pretrained(folder: str | os.PathLike[str], model: Pretrained) -> None:
    """Writes `config.json` and `model.safetensors` in the published layout, either both or none.

    `from_pretrained` returns exactly the same model.

    Raises:
        ValueError: the folder is not empty, or the parameters do not belong to the config.
    """
    from safetensors.numpy import save_file

    tensors = to_published(jax.device_get(model.params), model.config)
    with write_atomically(folder) as temporary:
        temporary.mkdir()
        write_config(temporary, model.config)
        # transformers does not read files without the metadata
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})


def read_config(path: str | os.PathLike[str]) -> AtomformerConfig:
    """The config of a model's folder or `.safetensors` file; unknown keys are ignored.

    The heads of a published model follow from its weights, or without weights from `architectures`.

    Raises:
        ValueError: a key has a wrong value, or the config belongs to another kind of model.
    """
    path = existing(path)
    has_weights = path.is_file() or any((path / name).exists() for name in (WEIGHTS, INDEX))
    return _read_config(path, _read_shapes(path) if has_weights else {})


def write_config(folder: str | os.PathLike[str], config: AtomformerConfig) -> None:
    """Writes `config.json` into `folder`, under the published keys where there is one.

    Raises:
        ValueError: reading the file would not give the same config.
    """
    ours = to_dict(config)
    values: dict[str, Any] = {name: ours.pop(name) for name in PUBLISHED_FIELDS}
    values |= {"problem_type": PROBLEM_TYPES[ours.pop("problem")], **SPECIAL_TOKENS, "model_type": MODEL_TYPE}
    # Conservative forces have no tensors, so no published architecture fits them.
    names = [name for name, heads in ARCHITECTURES.items() if heads == config.heads and not config.conservative]
    values |= {"architectures": names, OUR_KEY: ours}
    text = json.dumps(values, indent=1) + "\n"
    if _parse_config(json.loads(text), {}) != config:
        raise ValueError(f"{config} does not survive saving; give its fields values of exactly their annotated types")
    with write_atomically(pathlib.Path(folder, CONFIG)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_config(path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]) -> AtomformerConfig:
    config_path = existing((path if path.is_dir() else path.parent) / CONFIG)
    try:
        return _parse_config(_read_json(config_path), shapes)
    except ValueError as error:
        raise ValueError(f"{config_path}: {error}") from error


def _parse_config(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> AtomformerConfig:
    for name, expected in {"model_type": MODEL_TYPE, **SPECIAL_TOKENS}.items():
        if (found := values.get(name)) is not None and found != expected:
            raise ValueError(f"{name}: expected {expected!r}, found {found!r}; this is not an AtomFormer")
    ours = values.get(OUR_KEY, {})
    if not isinstance(ours, Mapping):
        raise ValueError(f"{OUR_KEY}: expected an object with the other fields of the config, found {ours!r}")
    heads = {"heads": _published_heads(values.get("architectures") or [], heads_among(shapes))}
    num_labels = {"num_labels": sizes_among(shapes).get("num_labels", 1)}
    published = {name: values[name] for name in PUBLISHED_FIELDS if values.get(name) is not None}
    if (problem_type := values.get("problem_type")) is not None:
        problems = {theirs: problem for problem, theirs in PROBLEM_TYPES.items()}
        if problem_type not in problems:
            raise ValueError(f"problem_type: expected one of {', '.join(problems)}, found {problem_type!r}")
        published["problem"] = problems[problem_type]
    return from_dict(AtomformerConfig, {**heads, **num_labels, **ours, **published})


def _published_heads(architectures: list[str], found: tuple[str, ...]) -> tuple[str, ...]:
    """The expected heads of a model whose config does not list them.

    These are the heads of the architecture, so that a missing one is noticed, unless the weights have others (as
    fine-tuned ones do).
    """
    named = next((ARCHITECTURES[name] for name in architectures if name in ARCHITECTURES), ())
    return found if found and not set(found) & set(named) else (*named, *(head for head in found if head not in named))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # raised by decoding UTF-8 or JSON
        raise ValueError(f"not JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, found {type(values).__name__}")
    return values


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    # Read as JAX arrays because NumPy has no bfloat16.
    files = _open_files(path, framework="flax")
    return {name: np.asarray(file.get_tensor(name)) for file in files for name in file.keys()}  # noqa: SIM118


def _read_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    files = _open_files(path, framework="np")
    return {name: tuple(file.get_slice(name).get_shape()) for file in files for name in file.keys()}  # noqa: SIM118


def _open_files(path: pathlib.Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    for file in _weight_files(path):
        try:
            opened = safe_open(file, framework=framework)
        except SafetensorError as error:
            advice = "it may be cut off, or a Git LFS pointer (`git lfs pull` gets the file); fetch it again"
            raise ValueError(f"{file} is not a safetensors file ({error}): {advice}") from error
        with opened as reader:
            yield reader


def _weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files that make up a model."""
    if path.is_file():
        if path.suffix == ".safetensors":
            return [path]
        if path.suffix in PICKLES:
            raise _pickle_refused(path)
        raise ValueError(f"{path}: expected a folder with {CONFIG} and {WEIGHTS}, or a .safetensors file")
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if (path / INDEX).exists():
        return _shards(path / INDEX)
    if pickles := sorted(path.glob("pytorch_model*.bin")):
        raise _pickle_refused(pickles[0])
    others = [file.name for file in sorted(path.glob("*.safetensors"))]
    hint = f"; it has {', '.join(others)}: give the path of that file" if others else ""
    raise ValueError(f"{path} has no {WEIGHTS} and no {INDEX}{hint}")


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    try:
        names = _read_json(index).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{index}: {error}") from error
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: expected a weight_map from tensors to files, found {names!r:.60}")
    shards = sorted(set(map(str, names.values())))
    if outside := [name for name in shards if pathlib.PurePath(name).name != name]:
        raise ValueError(f"{index}: expected names of files beside it, found {', '.join(outside)}")
    if missing := [name for name in shards if not (index.parent / name).exists()]:
        raise ValueError(f"{index.parent} lacks {', '.join(missing)}, which {INDEX} names; fetch the whole folder")
    return [index.parent / name for name in shards]


def _pickle_refused(path: pathlib.Path) -> ValueError:
    return ValueError(
        f"{path} is a pickle, which can run code, and is not read; convert it where PyTorch is installed: "
        f"safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), '{WEIGHTS}')"
    )


def _local_path(source: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(source)
    if not path.exists():
        if HUB_ID.fullmatch(str(source)):
            return _hub_folder(str(source))
        raise FileNotFoundError(
            f"{path} does not exist; expected a run folder, a folder with {CONFIG} and {WEIGHTS}, or the id "
            "ORGANISATION/NAME of a model on Hugging Face, where the published weights are"
        )
    if (path / RUN_CONFIG).is_file() and not (path / CONFIG).exists():
        if not (path / RUN_MODEL).exists():
            raise ValueError(
                f"{path} is a run without a model yet: it appears in {path / RUN_MODEL} when training ends"
            )
        return path / RUN_MODEL
    return path


def _hub_folder(hub_id: str) -> pathlib.Path:
    """The model's folder in the local cache of `huggingface_hub`, downloaded if it is not there."""
    advice = (
        f"download {CONFIG} and {WEIGHTS} from the page of {hub_id} on Hugging Face on a machine with network, "
        "put both into one folder and give its path"
    )
    if importlib.util.find_spec("huggingface_hub") is None:
        missing = "huggingface_hub is not installed to look it up (pip install 'matterform[datasets]')"
        raise ValueError(f"there is no folder {hub_id}, and {missing}; or {advice}")
    import huggingface_hub
    from huggingface_hub import errors

    reason = ""
    for offline in (True, False):
        try:
            folder = huggingface_hub.snapshot_download(
                hub_id, allow_patterns=[CONFIG, "*.safetensors", INDEX], local_files_only=offline
            )
        # HTTPError is httpx's or requests', whichever is in use.
        except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
            reason = str(error).partition("\n")[0]
            continue
        path = pathlib.Path(folder)
        if (path / CONFIG).exists() and any((path / name).exists() for name in (WEIGHTS, INDEX)):
            return path
        reason = f"it has no {CONFIG} or no {WEIGHTS}"
    raise ValueError(f"there is no folder {hub_id}, and Hugging Face does not provide it ({reason}); {advice}")
