"""What loading a model refuses; that it loads what training saved is tested in training/test_train.py."""

import pathlib

import pytest

from agedi.checkpoint import load_diffusion, load_hparams, split_checkpoint


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file whose folder may be new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("logs/version_0", ("logs/version_0", None)),
        ("logs/version_0/checkpoints", ("logs/version_0", None)),
        ("logs/version_0/checkpoints/best_model", ("logs/version_0", "best_model")),
    ],
)
def test_a_path_names_a_run_and_maybe_a_checkpoint(path, expected):
    assert split_checkpoint(path) == (pathlib.Path(expected[0]), expected[1])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_diffusion(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"is no run of AGeDi: it has no hparams\.yaml$"):
        load_diffusion(tmp_path)
    (tmp_path / "version_3").mkdir()
    with pytest.raises(ValueError, match="choose one of its runs: version_3"):
        load_diffusion(tmp_path)
    write(tmp_path / "crystal" / "config.yaml", "seed: 1")
    with pytest.raises(ValueError, match=r"config\.yaml: a run of CrystalFormer or AtomFormer"):
        load_diffusion(tmp_path / "crystal")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1", "describes no diffusion model"),
        ("diffusion: {cutoff: 3}", "unknown key 'cutoff'"),
        ("diffusion: {noisers: [Fractional]}", "noisers must be among"),
        ("diffusion: [", "is not valid YAML"),
    ],
)
def test_damaged_hparams_are_refused_by_name(tmp_path, text, message):
    write(tmp_path / "hparams.yaml", text)
    with pytest.raises(ValueError, match=f"hparams.yaml.*{message}"):
        load_hparams(tmp_path)


def test_a_run_without_checkpoints_is_refused(tmp_path):
    write(tmp_path / "hparams.yaml", "diffusion: {noisers: [Positions], sde: vp}")
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        load_diffusion(tmp_path)
