"""Models on disk: the golden ones, our own, and every way in which files can be wrong."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atomformer.checkpoint import published as weights
from atomformer.checkpoint.published import (
    Pretrained,
    from_pretrained,
    read_config,
    save_pretrained,
    to_published,
    write_config,
)
from atomformer.config import HEADS, AtomformerConfig, EnergyScale
from atomformer.data.structure import Structure
from atomformer.network.transformer import make_transformer

TINY = AtomformerConfig(dim=8, num_heads=2, depth=2, k=4)
FULL = AtomformerConfig(
    **{"dim": 8, "num_heads": 2, "depth": 2, "k": 4, "mlp_ratio": 2, "dropout": 0.1, "gradient_checkpointing": True},
    compute_dtype="bfloat16",
    heads=HEADS[::-1],
    num_labels=2,
    problem="binary",
    label_names=("a", "b"),
    label_mean=(0.1, 0.2),
    label_scale=(1.5, 1e-3),
    periodic="images",
    cutoff=5.5,
    energy=EnergyScale(references=((1, -13.6), (8, -2040.123456789)), scale=0.1, per_atom=True),
)


def make_model(config: AtomformerConfig = TINY) -> Pretrained:
    """A fresh model."""
    params, apply = make_transformer(jax.random.key(0), config)
    return Pretrained(params, config, apply)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A saved model of our own."""
    save_pretrained(tmp_path / "model", make_model())
    return tmp_path / "model"


def change_config(folder: pathlib.Path, **values) -> None:
    """Replaces keys of a config.json; None removes them."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


@pytest.mark.parametrize(
    ("file", "heads"),
    [("model.safetensors", ("formation_energy", "forces")), ("classifier.safetensors", ("classification",))],
)
def test_golden_tensors_come_back_bit_for_bit(golden_dir, file, heads):
    path = golden_dir / "atomformer" / file
    model = from_pretrained(path)
    assert model.config.heads == heads
    assert model.config.num_labels == (20 if "classification" in heads else 1)
    tensors, again = load_file(path), to_published(jax.device_get(model.params), model.config)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_golden_folder_predicts_the_golden_energies(golden_dir):
    params, _, apply = from_pretrained(golden_dir / "atomformer")
    want = np.load(golden_dir / "atomformer" / "s2ef.npz")
    batch = Structure(want["input_ids"].astype(np.int32), want["coords"], want["attention_mask"].astype(bool))
    found = jax.jit(jax.vmap(apply, in_axes=(None, None, 0)))(params, None, batch)
    np.testing.assert_allclose(found.formation_energy, want["energy_pred"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, FULL, dataclasses.replace(FULL, conservative=True)])
def test_saved_models_come_back_exactly(tmp_path, config):
    model = make_model(config)
    save_pretrained(tmp_path / "model", model)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    params, again, _ = from_pretrained(tmp_path / "model")
    assert again == config == read_config(tmp_path / "model")
    assert jax.tree.structure(params) == jax.tree.structure(model.params)
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def test_saved_files_are_those_that_others_read(folder, golden_dir):
    """config.json has the published keys and ours under one key; the tensors are marked as PyTorch's."""
    from safetensors import safe_open

    ours = json.loads((folder / "config.json").read_text())
    published = json.loads((golden_dir / "atomformer" / "config.json").read_text())
    assert ours.keys() - published.keys() == {"matterform", "num_labels", "problem_type"}
    assert ours["architectures"] == published["architectures"]
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_pytorch_reads_what_we_save(tmp_path):
    """A PyTorch module of the published layout takes our file strictly and computes the same."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from benchmarks.baselines.atomformer_torch import Structure2EnergyAndForces

    params, _, apply = model = make_model(dataclasses.replace(TINY, dim=16, num_heads=4, mlp_ratio=2))
    save_pretrained(tmp_path / "model", model)
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    sizes = {name: values[name] for name in ("dim", "num_heads", "depth", "k", "mlp_ratio", "vocab_size")}
    reader = Structure2EnergyAndForces(**sizes)
    reader.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"), strict=True)
    rng = np.random.default_rng(0)
    tokens, positions = rng.integers(1, 119, 7).astype(np.int32), rng.normal(0, 2, (7, 3)).astype(np.float32)
    ours = jax.jit(apply)(params, None, Structure(tokens, positions, np.ones(7, bool)))
    with torch.no_grad():
        theirs = reader(torch.from_numpy(tokens[None]).long(), torch.from_numpy(positions[None]), torch.ones(1, 7))
    for mine, other in zip((ours.hidden, ours.formation_energy, ours.forces), theirs, strict=True):
        np.testing.assert_allclose(mine, other[0], rtol=1e-4, atol=1e-5)


def test_sharded_weights_are_joined(folder):
    tensors = load_file(folder / "model.safetensors")
    names, files = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    halves = {files[0]: names[::2], files[1]: names[1::2]}
    want = from_pretrained(folder).params
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, half in halves.items() for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(folder).params, want)
    (folder / files[1]).unlink()
    with pytest.raises(ValueError, match=f"lacks {files[1]}"):
        from_pretrained(folder)


def test_half_precision_files_are_read(folder):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    found = from_pretrained(folder).params["encoder"]["tokens"]
    np.testing.assert_array_equal(found, tensors["encoder.embed_tokens.weight"].float().numpy())


def test_keys_of_others_are_ignored(folder):
    change_config(folder, transformers_version="4.40.0", torch_dtype="float32", id2label={"0": "LABEL_0"})
    assert read_config(folder) == TINY


def test_published_configs_tell_heads_by_architecture_or_weights(folder):
    change_config(folder, matterform=None)
    assert read_config(folder).heads == ("formation_energy", "forces")
    (folder / "model.safetensors").unlink()
    assert read_config(folder).heads == ("formation_energy", "forces")
    change_config(folder, architectures=["SomethingElse"])
    assert read_config(folder).heads == ()


def test_a_head_of_the_architecture_cannot_go_missing_unnoticed(folder):
    change_config(folder, matterform=None)
    tensors = load_file(folder / "model.safetensors")
    for heads in (("force_",), ("force_", "energy_", "formation_")):
        save_file({k: x for k, x in tensors.items() if not k.startswith(heads)}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"missing: .*force_head.weight, force_head.bias"):
            from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 3}, "config disagrees with the weights: depth is 3 but the weights have 2"),
        ({"dim": "8"}, "config.json: dim: expected int, found '8'"),
        ({"num_heads": 3}, "config.json: dim must be a multiple of num_heads"),
        ({"model_type": "bert"}, "model_type: expected 'atomformer', found 'bert'"),
        ({"pad_token_id": 0}, "pad_token_id: expected 119, found 0"),
        ({"problem_type": "ranking"}, "problem_type: expected one of regression, .*, found 'ranking'"),
        ({"matterform": {"periodc": "none"}}, "unknown key 'periodc'; did you mean 'periodic'"),
        ({"matterform": 3}, "matterform: expected an object"),
        ({"matterform": {"heads": ["forces"]}}, "unexpected: .*energy_norm.weight"),
    ],
)
def test_wrong_configs_are_refused_in_one_line(folder, values, message):
    change_config(folder, **values)
    with pytest.raises(ValueError, match=message) as error:
        from_pretrained(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_configs_that_would_not_come_back_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="does not survive saving"):
        write_config(tmp_path, AtomformerConfig(label_mean=(float("nan"),)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "not a safetensors file .*git lfs pull"),
        (b"", "not a safetensors file"),
    ],
)
def test_damaged_weights_are_refused(folder, content, message):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)


def test_cut_off_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"not a safetensors file .*cut off"):
        from_pretrained(folder)


def test_text_that_is_not_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        from_pretrained(folder)


def test_pickles_are_refused_with_advice(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for path in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(ValueError, match=r"is a pickle.*save_file\(torch.load"):
            from_pretrained(path)


def test_weights_under_another_name_are_pointed_out(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ValueError, match=r"has no model.safetensors .*it has other.safetensors"):
        from_pretrained(folder)
    assert from_pretrained(folder / "other.safetensors").config == TINY


def test_an_index_cannot_lead_out_of_its_folder(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ValueError, match=r"expected names of files beside it, found \.\./a.safetensors"):
        from_pretrained(folder)


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
        from_pretrained(folder)


def test_a_full_folder_is_not_overwritten(folder):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds something"):
        save_pretrained(folder, make_model())
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty local cache, and a hub that cannot be reached."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def put_into_cache(folder: pathlib.Path, cache: pathlib.Path, hub_id: str) -> pathlib.Path:
    """Places a model as huggingface_hub does after a download."""
    commit, repository = "0" * 40, cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return pathlib.Path(shutil.copytree(folder, repository / "snapshots" / commit))


def test_hub_ids_are_found_in_the_local_cache(folder, hub_cache):
    put_into_cache(folder, hub_cache, "someone/atomformer-tiny")
    found = from_pretrained("someone/atomformer-tiny")
    assert found.config == TINY
    jax.tree.map(np.testing.assert_array_equal, found.params, make_model().params)


def test_folders_go_before_hub_ids(folder, hub_cache, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    assert from_pretrained(f"{folder.parent.name}/model").config == TINY
    assert not hub_cache.exists()


def test_hub_ids_without_network_say_how_to_place_files(hub_cache):
    with pytest.raises(ValueError, match=r"no folder someone/atomformer-tiny, .*download config.json and") as error:
        from_pretrained("someone/atomformer-tiny")
    assert "\n" not in str(error.value)


def test_an_incomplete_cache_is_not_taken_for_the_model(folder, hub_cache):
    snapshot = put_into_cache(folder, hub_cache, "someone/atomformer-tiny")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"download config.json and model.safetensors"):
        from_pretrained("someone/atomformer-tiny")


def test_hub_ids_without_the_package_say_how_to_place_files(monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"huggingface_hub is not installed .*put both into one folder"):
        from_pretrained("someone/atomformer-tiny")


def test_other_missing_paths_are_no_hub_ids():
    with pytest.raises(FileNotFoundError, match="no-such-folder does not exist"):
        from_pretrained("no-such-folder")


def test_a_run_folder_stands_for_its_model(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match=r"run is a run without a model yet: it appears in .*model when training ends"):
        from_pretrained(run)
    shutil.copytree(folder, run / "model")
    assert from_pretrained(run).config == from_pretrained(folder).config
