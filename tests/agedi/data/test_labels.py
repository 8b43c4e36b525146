"""Properties, energies and forces as ASE stores them."""

import numpy as np
import pytest
from ase.calculators.emt import EMT

from agedi.data.dataset import create_dataset
from agedi.data.labels import placeholder


def test_properties_come_from_info_results_methods_and_arrays(surfaces):
    names, kinds = "gap,class,height,energy,masses,volume", ["scalar", "integer", "node", "scalar", "node", "scalar"]
    found = create_dataset(surfaces, conditioning=names, conditioning_type=kinds).conditions
    for i, atoms in enumerate(surfaces):
        assert found["gap"][i] == np.float32(0.5 * i)
        assert found["class"][i] == i
        assert found["class"][i].dtype == np.int32
        np.testing.assert_allclose(found["height"][i], atoms.arrays["height"], rtol=1e-6)
        np.testing.assert_allclose(found["energy"][i], atoms.get_potential_energy(), rtol=1e-6)
        np.testing.assert_allclose(found["masses"][i], atoms.get_masses(), rtol=1e-6)
        np.testing.assert_allclose(found["volume"][i], atoms.get_volume(), rtol=1e-6)


def test_given_properties_come_before_info_and_info_before_methods(surfaces):
    surfaces[1].info["volume"] = 7.0
    given = [{"gap": 9.0}, {}, {"volume": 8.0}]
    found = create_dataset(surfaces, conditioning=["gap", "volume"], properties=given).conditions
    assert [float(v) for v in found["gap"]] == [9.0, 0.5, 1.0]
    np.testing.assert_allclose(found["volume"], [surfaces[0].get_volume(), 7.0, 8.0], rtol=1e-6)
    with pytest.raises(ValueError, match="an entry for each of 3"):
        create_dataset(surfaces, conditioning="gap", properties=given[:2])


def test_labels_are_those_a_calculator_holds_of_the_unchanged_structure(surfaces, caplog):
    surfaces[0].calc = EMT()  # never asked
    surfaces[1].positions[4] += 0.1
    dataset = create_dataset(surfaces, force_field=True)
    assert np.isfinite(dataset.energies).tolist() == [False, False, True]
    assert [bool(np.isfinite(forces).all()) for forces in dataset.forces] == [False, False, True]
    assert surfaces[0].calc.results == {}
    assert "1 structures were changed after" in caplog.text
    with pytest.raises(ValueError, match="no structure has any"):
        create_dataset(surfaces[:2], force_field=True)


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"), [("scalar", (), np.float32), ("integer", (), np.int32), ("node", (3,), np.float32)]
)
def test_placeholders_have_the_shape_of_the_property(kind, shape, dtype):
    zeros = placeholder(kind, 3)
    assert zeros.shape == shape
    assert zeros.dtype == dtype
    assert not zeros.any()
