"""Which potential is opened, where, and with which corrections."""

import pathlib
import sys

import pytest

from matterform.potentials.config import PotentialConfig
from matterform.potentials.open import open_potential

EMT = {"mlff_model": "ase", "mlff_variant": "ase.calculators.emt:EMT"}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_the_model_is_chosen_by_name(crystals):
    with open_potential(PotentialConfig(**EMT)) as potential:
        assert potential.name == "ase ase.calculators.emt:EMT"
        assert potential.predict(crystals[-1:], "energy").problems == [""]


def test_chgnet_is_what_needs_nothing():
    pytest.importorskip("chgnet")
    with open_potential(PotentialConfig()) as potential:
        assert potential.name == "chgnet 0.3.0"
        assert potential.corrected


@pytest.mark.parametrize(
    ("flag", "message"),
    [(None, "not known to be in"), (True, "contained in"), (False, "added to")],
)
def test_the_user_says_whether_energies_are_corrected(flag, message, caplog):
    with caplog.at_level("INFO"), open_potential(PotentialConfig(mlff_corrected=flag, **EMT)) as potential:
        assert potential.corrected is flag
    assert [f"MP2020 corrections: {message}" in line for line in caplog.messages] == [True]
    assert "ase.calculators.emt:EMT" in caplog.text


def test_threads_are_set_and_given_back(torch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with open_potential(PotentialConfig(threads=1, **EMT)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("model", ["chgnet", "orb", "mace", "matgl"])
def test_an_absent_device_is_one_clear_error(model, torch, tmp_path):
    pytest.importorskip({"orb": "orb_models"}.get(model, model))
    config = PotentialConfig(mlff_model=model, mlff_path=None if model == "chgnet" else tmp_path, device="cuda:77")
    with pytest.raises(ValueError, match="no device 'cuda:77' for PyTorch here; there is cpu"), open_potential(config):
        pass


@pytest.mark.parametrize("model", ["orb", "mace", "matgl"])
def test_a_missing_path_is_said_at_once(model):
    pytest.importorskip({"orb": "orb_models"}.get(model, model))
    with pytest.raises(ValueError, match="needs the path of"), open_potential(PotentialConfig(mlff_model=model)):
        pass
    config = PotentialConfig(mlff_model=model, mlff_path=pathlib.Path("no/such/file"))
    with pytest.raises(FileNotFoundError, match="no/such/file does not exist"), open_potential(config):
        pass


@pytest.mark.parametrize("model", ["chgnet", "orb", "mace", "matgl"])
def test_without_pytorch_the_extra_is_named(model, monkeypatch, tmp_path):
    modules = {"chgnet": "chgnet.model.model", "orb": "orb_models.forcefield", "mace": "mace.modules", "matgl": "matgl"}
    for name in ("torch", modules[model]):
        monkeypatch.setitem(sys.modules, name, None)
    config = PotentialConfig(mlff_model=model, mlff_path=None if model == "chgnet" else tmp_path)
    with pytest.raises(ImportError, match=rf"pip install 'matterform\[{model}\]'"), open_potential(config):
        pass


def test_settings_may_be_keywords(crystals):
    with open_potential(**EMT, mlff_corrected=True) as potential:
        assert potential.corrected
    with open_potential(PotentialConfig(mlff_model="chgnet", mlff_corrected=True), **EMT) as potential:
        assert (potential.name, potential.corrected) == ("ase ase.calculators.emt:EMT", True)
    with pytest.raises(TypeError, match="model_path"), open_potential(model_path="x"):
        pass
    with (
        pytest.raises(FileNotFoundError, match="no/such/file"),
        open_potential(mlff_model="matgl", mlff_path="no/such/file"),
    ):
        pass
