"""Structures of every kind as input of the network: checked columns, references, wrapping, padding."""

import dataclasses

import ase
import numpy as np
import pymatgen.core
import pytest

from atomformer.config import AtomformerConfig, EnergyScale
from atomformer.data.inputs import input_row, pad_structures, prepare_structure, reference_energy
from atomformer.data.vocabulary import PAD

CONFIG = AtomformerConfig()
CELL = np.array([[3.0, 0.0, 0.0], [7.0, 3.2, 0.0], [0.0, 0.3, 4.0]])  # skewed: its reduced cell is another
FRACTIONAL = np.array([[0.1, 0.2, 0.3], [0.6, 0.4, 0.9]])


def crystal(pbc=True) -> ase.Atoms:
    return ase.Atoms("SiC", scaled_positions=FRACTIONAL, cell=CELL, pbc=pbc)


def test_atoms_structures_and_rows_give_the_same_columns():
    atoms = crystal()
    structure = pymatgen.core.Structure(CELL, ["Si", "C"], FRACTIONAL)
    mapping = {"input_ids": [14, 6], "coords": atoms.positions, "cell": CELL, "pbc": [True] * 3, "forces": "not read"}
    expected = input_row(atoms, CONFIG)
    assert set(expected) == {"input_ids", "coords", "cell", "pbc"}
    for other in (structure, mapping):
        found = input_row(other, CONFIG)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-12)
    molecule = input_row(ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), CONFIG)
    assert set(molecule) == {"input_ids", "coords"}


def test_token_types_come_from_an_array():
    atoms = crystal()
    atoms.set_array("token_type_ids", np.array([2, 0]))
    np.testing.assert_array_equal(input_row(atoms, CONFIG)["token_type_ids"], [2, 0])


def test_what_is_no_structure_is_refused():
    with pytest.raises(ValueError, match="expected ASE Atoms, a pymatgen Structure or a row, found str; give a list"):
        input_row("CO", CONFIG)
    with pytest.raises(ValueError, match="atoms 0 and 1 are at the same place"):
        input_row(ase.Atoms("CO", np.zeros((2, 3))), CONFIG)


def test_reference_energies_are_summed_over_the_atoms():
    config = AtomformerConfig(energy=EnergyScale(references=((6, -10.0), (8, -20.0))))
    assert reference_energy(np.array([6, 8, 8]), config) == -50.0
    assert reference_energy(np.array([6, 8, 8]), CONFIG) == 0.0
    assert reference_energy(np.array([1]), dataclasses.replace(config, heads=("masked",))) == 0.0
    with pytest.raises(ValueError, match="no reference energies of H, Si"):
        reference_energy(np.array([6, 14, 1]), config)


def test_positions_are_relative_to_their_mean_and_lose_no_digits_far_away():
    atoms = ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])
    near = prepare_structure(input_row(atoms, CONFIG), CONFIG)
    atoms.positions += 1e6
    far = prepare_structure(input_row(atoms, CONFIG), CONFIG)
    np.testing.assert_allclose(far.positions, near.positions, atol=1e-7)
    np.testing.assert_allclose(near.positions.mean(axis=0), 0, atol=1e-7)
    assert near.cell is near.pbc is near.edges is None


@pytest.mark.parametrize("periodic", ["minimum_image", "images"])
def test_images_of_atoms_make_no_difference_in_a_crystal(periodic):
    config = dataclasses.replace(CONFIG, periodic=periodic, cutoff=4.0)
    atoms = crystal()
    first = prepare_structure(input_row(atoms, config), config)
    atoms.positions[1] += 2 * CELL[0] - CELL[2]
    second = prepare_structure(input_row(atoms, config), config)
    np.testing.assert_allclose(second.positions, first.positions, atol=1e-5)
    assert np.linalg.norm(first.cell, axis=1).max() < 5  # reduced
    assert (first.edges is None) == (periodic != "images")
    if periodic == "images":
        assert len(first.edges.first) == len(second.edges.first) > 0


def test_molecules_in_a_periodic_model_have_no_periodic_direction():
    config = dataclasses.replace(CONFIG, periodic="minimum_image")
    structure = prepare_structure(input_row(ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), config), config)
    assert not structure.pbc.any()
    np.testing.assert_array_equal(structure.cell, np.eye(3))


def test_batches_are_padded():
    config = dataclasses.replace(CONFIG, periodic="images", cutoff=4.0)
    atoms = [crystal(), ase.Atoms("C", [[0, 0, 0]], cell=CELL, pbc=[True, True, False])]
    structures = [prepare_structure(input_row(a, config), config) for a in atoms]
    edges = [len(structure.edges.first) for structure in structures]
    batch = pad_structures(structures, 4, max(edges) + 3)
    np.testing.assert_array_equal(batch.mask, [[True, True, False, False], [True, False, False, False]])
    np.testing.assert_array_equal(batch.tokens, [[14, 6, PAD, PAD], [6, PAD, PAD, PAD]])
    np.testing.assert_array_equal(batch.positions[0, 2:], 0)
    np.testing.assert_array_equal(batch.edges.mask.sum(axis=1), edges)
    assert batch.edges.shift.shape == (2, max(edges) + 3, 3)
    assert batch.cell.shape == (2, 3, 3)
    assert batch.token_types is None
