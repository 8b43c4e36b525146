"""What `--model` may be, and the weights that ship."""

import pathlib

import jax
import numpy as np
import pytest

from crystalformer.checkpoint.pretrained import (
    find_checkpoint,
    held_out_statistics,
    load_model,
    load_pretrained,
    model_card,
    training_spacegroups,
)
from crystalformer.checkpoint.published import save_checkpoint
from crystalformer.config import WeightsConfig
from crystalformer.network.parameters import init_params


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache of Hugging Face, and a working directory without anything."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / "hub"


def touch(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """A folder with empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.pkl"], "a.pkl"),
        (["epoch_000100.pkl", "epoch_000020.pkl", "other.pkl"], "epoch_000100.pkl"),
        (["epoch_000100.pkl", "best.pkl"], "best.pkl"),
        # A run folder, finished or not, with a reference as fine-tuning keeps it.
        (["config.yaml", "published/best.pkl", "published/epoch_000050.pkl", "reference.pkl"], "published/best.pkl"),
        (["config.yaml", "published/epoch_000050.pkl", "published/epoch_000100.pkl"], "published/epoch_000100.pkl"),
        (["README.md", "alex20/epoch_000010.pkl", "alex20/epoch_000020.pkl"], "alex20/epoch_000020.pkl"),
    ],
)
def test_a_file_or_a_folder_of_weights(tmp_path, files, expected):
    folder = touch(tmp_path / "model", *files)
    assert find_checkpoint(folder) == find_checkpoint(str(folder)) == folder / expected
    assert find_checkpoint(folder / expected) == folder / expected


def test_a_folder_beside_us_goes_before_the_cache(hub):
    touch(hub / "models--zdcao--CrystalFormer" / "snapshots" / "a", "epoch_000001.pkl")
    touch(pathlib.Path("zdcao/CrystalFormer"), "epoch_000002.pkl")
    assert find_checkpoint("zdcao/CrystalFormer") == pathlib.Path("zdcao/CrystalFormer/epoch_000002.pkl")


def test_a_published_name_in_the_cache(hub):
    snapshots = hub / "models--zdcao--CrystalFormer" / "snapshots"
    touch(snapshots, "old/epoch_000001.pkl", "main/mp20/epoch_000002.pkl", "main/alex20/epoch_000003.pkl")
    touch(snapshots.parent / "refs", "main")
    (snapshots.parent / "refs" / "main").write_text("main\n")
    assert find_checkpoint("zdcao/CrystalFormer/mp20") == snapshots / "main/mp20/epoch_000002.pkl"
    file = "alex20/epoch_000003.pkl"
    assert find_checkpoint(f"zdcao/CrystalFormer/{file}") == snapshots / "main" / file
    with pytest.raises(ValueError, match=r"add the name of one of them: alex20/epoch_000003\.pkl, mp20/epoch_0"):
        find_checkpoint("zdcao/CrystalFormer")


def test_the_cache_may_be_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = touch(tmp_path / "cache" / "models--a--b" / "snapshots" / "x", "best.pkl")
    assert find_checkpoint("a/b") == snapshot / "best.pkl"


@pytest.mark.parametrize("model", ["zdcao/CrystalFormer", "absent.pkl", "/absent/best.pkl", "a/b/c"])
def test_what_is_not_on_this_disk_is_answered_by_where_to_get_it(model):
    with pytest.raises(ValueError, match=f"no file or folder {model}.*huggingface.co/zdcao/CrystalFormer.*give its"):
        find_checkpoint(model)
    with pytest.raises(ValueError, match="no file or folder"):
        load_model(WeightsConfig(model=pathlib.Path(model)))


def test_folders_without_one_obvious_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.pkl of weights"):
        find_checkpoint(touch(tmp_path / "run", "config.yaml"))
    with pytest.raises(ValueError, match=r"holds 2 files of weights; add the name of one of them: a\.pkl, b\.pkl"):
        find_checkpoint(touch(tmp_path / "two", "a.pkl", "b.pkl"))


def test_weights_are_loaded_with_the_hyperparameters_given(tmp_path, tiny_config):
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), tiny_config))
    save_checkpoint(tmp_path / "epoch_000003.pkl", params)
    for weights in (tmp_path, WeightsConfig(model=tmp_path, Kx=tiny_config.Kx, n_max=7)):
        checkpoint = load_model(weights, num_heads=2, key_size=8)
        assert (checkpoint.epoch, checkpoint.config.num_layers) == (3, tiny_config.num_layers)
        jax.tree.map(np.testing.assert_array_equal, checkpoint.params, params)
    assert checkpoint.config.n_max == 7
    with pytest.raises(ValueError, match="num_layers=3 was given"):
        load_model(tmp_path, num_heads=2, key_size=8, num_layers=3)


def test_the_small_model_ships_with_its_card():
    checkpoint = load_pretrained()
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, load_model().params)
    counts = training_spacegroups()
    assert counts.sum() == sum(model_card()["spacegroups"].values())
    assert counts[224] == model_card()["spacegroups"]["225"]
    assert {"formula", "num_atoms", "density_g_cm3"} <= set(held_out_statistics())
