import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matterform.potentials.config import PropertyConfig
from matterform.potentials.load import load_property
from matterform.potentials.matgl import load_matgl, load_matgl_property, matgl_potential, matgl_property

matgl = pytest.importorskip("matgl")
models = pytest.importorskip("matgl.models")
torch = pytest.importorskip("torch")

SMALL_M3GNET = {"dim_node_embedding": 16, "dim_edge_embedding": 16, "units": 16, "nblocks": 2}


def random_potential():
    from matgl.apps.pes import Potential

    torch.manual_seed(0)
    model = models.M3GNet(is_intensive=False, **SMALL_M3GNET)
    return Potential(model=model, element_refs=np.linspace(-3, -1, len(model.element_types)), data_std=3.0)


@pytest.fixture
def bad(impossible):
    """What a property model must refuse."""
    lone = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])
    return {**impossible, "isolated": lone, "model: Og": Structure(Lattice.cubic(4), ["Og"], [[0, 0, 0]])}


def megnet(**settings):
    torch.manual_seed(0)
    return models.MEGNet(**settings).eval()


def check_property(model, crystals, bad, alone):
    """Values of a batch equal the package's own, one by one, whatever stands beside them."""
    result = model.predict([*bad.values(), *crystals])
    assert all(word in problem for word, problem in zip(bad, result.problems, strict=False))
    assert np.isnan(result.values[: len(bad)]).all()
    assert result.problems[len(bad) :] == [""] * len(crystals)
    expected = [alone(crystal).numpy() for crystal in crystals]
    np.testing.assert_allclose(result.values[len(bad) :], expected, rtol=1e-4, atol=1e-6)
    assert len({float(np.ravel(value)[0]) for value in expected}) == len(crystals)


def test_a_potential_obeys_the_laws(crystals, bad, laws):
    # In double precision: the forces of random weights are too small for differences of float32 energies.
    laws(matgl_potential(random_potential().double()), crystals, bad, {})


def test_a_saved_potential_equals_the_package_s_calculator(crystals, tmp_path):
    import ase
    from matgl.ext.ase import PESCalculator

    potential = random_potential()
    potential.save(tmp_path)
    ours = load_matgl(tmp_path).predict(crystals, "stress")
    for index, crystal in enumerate(crystals):
        atoms = ase.Atoms(crystal.atomic_numbers, crystal.cart_coords, cell=crystal.lattice.matrix, pbc=True)
        atoms.calc = PESCalculator(potential, stress_unit="eV/A3", use_voigt=True)
        assert ours.energy[index] == pytest.approx(atoms.get_potential_energy(), rel=1e-5)
        np.testing.assert_allclose(ours.forces[index], atoms.get_forces(), atol=2e-5)
        np.testing.assert_allclose(ours.stress[index], atoms.get_stress(voigt=False), atol=2e-6)
    loaded = load_matgl(tmp_path)
    assert (loaded.name, loaded.corrected) == (f"matgl {tmp_path.name}", False)


def test_energies_of_a_chgnet_may_be_corrected_or_not():
    from matgl.apps.pes import Potential

    assert matgl_potential(Potential(model=models.CHGNet(num_blocks=1))).corrected is None


def test_a_band_gap_of_one_fidelity_is_that_of_the_package(crystals, bad, tmp_path):
    model = megnet(ntypes_state=4, dim_state_embedding=16, include_state=True, cutoff=5.0, niters_set2set=3)
    model.save(tmp_path)
    values = []
    for fidelity in (0, 3):
        loaded = load_property(PropertyConfig(property_path=tmp_path, fidelity=fidelity))
        state = torch.tensor([fidelity])
        check_property(loaded, crystals, bad, lambda crystal, state=state: model.predict_structure(crystal, state))
        values.append(loaded.predict(crystals).values)
    assert (values[0] != values[1]).all()


def test_a_model_without_fidelities_needs_none(crystals, bad):
    model = megnet()
    check_property(matgl_property(model), crystals, bad, model.predict_structure)


def test_several_targets_are_several_columns(crystals, bad):
    torch.manual_seed(0)
    model = models.M3GNet(is_intensive=True, ntargets=6, **SMALL_M3GNET).eval()
    check_property(matgl_property(model), crystals, bad, model.predict_structure)
    assert matgl_property(model).predict([]).values.shape == (0, 6)


def test_a_fidelity_must_be_one_of_the_model_s(tmp_path):
    megnet(ntypes_state=4, dim_state_embedding=16).save(tmp_path)
    with pytest.raises(ValueError, match="has 4 fidelities: give one of 0 to 3; got None"):
        load_matgl_property(tmp_path)
    with pytest.raises(ValueError, match="got 4"):
        load_matgl_property(tmp_path, 4)
    with pytest.raises(ValueError, match="has no fidelities; got fidelity 1"):
        matgl_property(megnet(), fidelity=1)


def test_a_wrong_folder_is_said_at_once(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"not a folder of a matgl model: model.json, model.pt, state.pt missing"):
        load_matgl(tmp_path)
    megnet().save(tmp_path / "gap")
    random_potential().save(tmp_path / "potential")
    with pytest.raises(ValueError, match="holds a MEGNet, a model of a property, and no potential"):
        load_matgl(tmp_path / "gap")
    with pytest.raises(ValueError, match="holds a potential and no model of a property"):
        load_matgl_property(tmp_path / "potential")
    with pytest.raises(ValueError, match="no variants; got 'M3GNet'"):
        load_matgl(tmp_path / "potential", "M3GNet")
    (tmp_path / "gap" / "state.pt").write_bytes((tmp_path / "potential" / "state.pt").read_bytes())
    with pytest.raises(ValueError, match="gap holds no model that matgl can load: "):
        load_matgl_property(tmp_path / "gap")
    monkeypatch.setitem(sys.modules, "matgl", None)
    with pytest.raises(ImportError, match=r"pip install 'matterform\[matgl\]'"):
        load_matgl(tmp_path / "potential")
