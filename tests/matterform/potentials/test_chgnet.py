import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matterform.potentials.chgnet import load_chgnet

chgnet = pytest.importorskip("chgnet")


@pytest.fixture(scope="module")
def potential():
    return load_chgnet()


def test_obeys_the_laws(potential, crystals, impossible, laws):
    lone = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])
    curium = Structure(Lattice.cubic(3.5), ["Cm"], [[0, 0, 0]])
    laws(potential, crystals, impossible, {"isolated": lone, "Z = 96": curium})


def test_equals_the_package_s_own_prediction(potential, crystals):
    ours = potential.predict(crystals, "stress")
    model = chgnet.model.model.CHGNet.load(use_device="cpu", verbose=False)
    theirs = model.predict_structure(crystals, task="efs")
    gpa = 160.21766208  # in eV/Å³
    for index, (crystal, result) in enumerate(zip(crystals, theirs, strict=True)):
        assert ours.energy[index] == pytest.approx(result["e"] * len(crystal), rel=1e-5)
        np.testing.assert_allclose(ours.forces[index], result["f"], atol=2e-5)
        np.testing.assert_allclose(ours.stress[index], result["s"] / gpa, atol=2e-6)


def test_silicon_has_its_energy_and_a_compressed_crystal_pushes(potential):
    silicon = Structure.from_spacegroup(227, Lattice.cubic(5.43), ["Si"], [[0, 0, 0]])
    small = silicon.apply_strain(-0.04, inplace=False)
    energies = potential.predict([silicon], "energy").energy / 8
    assert energies == pytest.approx(-5.31, abs=0.03)  # Materials Project: -5.42 eV without, CHGNet's own value
    assert (np.diag(potential.predict([small], "stress").stress[0]) < -0.05).all()
    assert potential.corrected


def test_asks_only_for_what_is_wanted(potential, crystals):
    energies, forces = (potential.predict(crystals, quantity) for quantity in ("energy", "forces"))
    assert energies.forces == [None] * len(crystals)
    assert np.isnan(energies.stress).all()
    assert forces.forces[0].shape == (len(crystals[0]), 3)
    assert np.isnan(forces.stress).all()
    np.testing.assert_allclose(energies.energy, forces.energy, rtol=1e-6)


def test_loads_what_its_trainer_saved(potential, crystals, tmp_path):
    torch = pytest.importorskip("torch")
    model = chgnet.model.model.CHGNet.load(use_device="cpu", verbose=False)
    path = tmp_path / "tuned.pth.tar"
    torch.save({"model": model.as_dict()}, path)
    loaded = load_chgnet(path)
    assert loaded.name == "chgnet tuned.pth.tar"  # names are written into files, which must not say where things lie
    again = loaded.predict(crystals, "energy")
    # A file has no version, so its readout has a bias, which the packaged weights leave out.
    np.testing.assert_allclose(again.energy, potential.predict(crystals, "energy").energy, rtol=1e-5)


def test_what_cannot_be_loaded_is_said(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a checkpoint of CHGNet"):
        load_chgnet(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_chgnet(tmp_path / "absent")
    with pytest.raises(ValueError, match="has the versions"):
        load_chgnet(variant="9")
    with pytest.raises(ValueError, match="not both"):
        load_chgnet(tmp_path / "other.pt", "0.3.0")
    monkeypatch.setitem(sys.modules, "chgnet.model.model", None)
    with pytest.raises(ImportError, match=r"pip install 'matterform\[chgnet\]'"):
        load_chgnet()


def test_says_nothing(capfd, crystals):
    load_chgnet().predict(crystals, "stress")
    assert capfd.readouterr() == ("", "")
