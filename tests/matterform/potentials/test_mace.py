import copy
import importlib
import os
import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matterform.potentials.mace import load_mace, mace_potential
from matterform.potentials.torch_state import TRUST_ALL_FILES, unchanged_process

torch = pytest.importorskip("torch")
with unchanged_process():
    modules = pytest.importorskip("mace.modules")

ELEMENTS = (11, 14, 17, 29, 55)


@pytest.fixture(scope="module")
def model():
    """A small random MACE, in float32."""
    from e3nn import o3

    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        r_max=5.0,
        num_bessel=6,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("8x0e+8x1o"),
        MLP_irreps=o3.Irreps("8x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.linspace(-5.0, -1.0, len(ELEMENTS)),
        avg_num_neighbors=20.0,
        atomic_numbers=list(ELEMENTS),
        correlation=2,
    )


def test_obeys_the_laws(model, crystals, impossible, laws):
    lone = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])
    gold = Structure(Lattice.cubic(4), ["Au"], [[0, 0, 0]])
    # In double precision: the forces of random weights are too small for differences of float32 energies.
    laws(mace_potential(copy.deepcopy(model).double()), crystals, impossible, {"isolated": lone, "model: Au": gold})


def test_a_file_equals_the_package_s_calculator(model, crystals, tmp_path):
    import ase
    from mace.calculators import MACECalculator

    path = tmp_path / "small.model"
    torch.save(model, path)
    ours = load_mace(path).predict(crystals, "stress")
    only = load_mace(path, batch_size=2).predict(crystals, "energy").energy
    np.testing.assert_allclose(only, ours.energy, rtol=1e-6)
    with unchanged_process():
        calculator = MACECalculator(models=[model], device="cpu", default_dtype="float32")
    for index, crystal in enumerate(crystals):
        atoms = ase.Atoms(crystal.atomic_numbers, crystal.cart_coords, cell=crystal.lattice.matrix, pbc=True)
        atoms.calc = calculator
        assert ours.energy[index] == pytest.approx(atoms.get_potential_energy(), rel=1e-6)
        np.testing.assert_allclose(ours.forces[index], atoms.get_forces(), atol=1e-5)
        np.testing.assert_allclose(ours.stress[index], atoms.get_stress(voigt=False), atol=1e-6)


def test_energies_are_uncorrected(model):
    assert not mace_potential(model).corrected


def test_a_double_model_stays_double(model, crystals, tmp_path):
    path = tmp_path / "double.model"
    torch.save(copy.deepcopy(model).double(), path)
    single, double = (potential.predict(crystals, "forces") for potential in (mace_potential(model), load_mace(path)))
    np.testing.assert_allclose(single.energy, double.energy, rtol=1e-5)
    assert (single.energy != double.energy).any()
    assert torch.get_default_dtype() == torch.float32


def test_a_head_must_be_one_of_the_model_s(model, monkeypatch):
    monkeypatch.setattr(model, "heads", ["pbe", "r2scan"], raising=False)
    with pytest.raises(ValueError, match="heads pbe, r2scan; choose one as variant, got None"):
        mace_potential(model)
    with pytest.raises(ValueError, match="got 'hse'"):
        mace_potential(model, head="hse")


def test_what_is_no_model_is_said(tmp_path, monkeypatch):
    path = tmp_path / "other.model"
    path.write_text("no pickle")
    with pytest.raises(ValueError, match="holds no MACE"):
        load_mace(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="holds no MACE but a dict"):
        load_mace(path)
    monkeypatch.setitem(sys.modules, "mace.modules", None)
    with pytest.raises(ImportError, match=r"pip install 'matterform\[mace\]'"):
        load_mace(path)


def test_importing_the_package_leaves_other_files_distrusted(model, monkeypatch, tmp_path):
    path = tmp_path / "small.model"
    torch.save(model, path)
    monkeypatch.delenv(TRUST_ALL_FILES, raising=False)
    monkeypatch.delitem(sys.modules, "mace")  # so that it is imported anew, and sets the variable
    load_mace(path)
    assert TRUST_ALL_FILES not in os.environ
    importlib.import_module("mace")
    monkeypatch.delitem(sys.modules, "mace")
    importlib.import_module("mace")
    assert os.environ.pop(TRUST_ALL_FILES) == "1"  # so it does without our care
