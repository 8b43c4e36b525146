"""Distances between atoms and their periodic images."""

import ase
import numpy as np
import pytest

from agedi.data.contacts import check_contacts, closest_pair
from agedi.data.graph import from_atoms


def test_closest_pair_sees_images(rng):
    cell = np.array([[4.0, 0, 0], [3.1, 0.9, 0], [0, 0, 5.0]])  # whose short diagonal is (-0.9, 0.9, 0)
    for _ in range(50):
        atoms = ase.Atoms("H4", positions=rng.uniform(-9, 9, (4, 3)), cell=cell, pbc=True)
        atoms.positions[3] = atoms.positions[1] + rng.integers(-2, 3, 3) @ cell + [0.1, 0.1, 0.1]
        distance, first, second = closest_pair(from_atoms(atoms))
        assert (distance, {first, second}) == (pytest.approx(0.03**0.5, abs=1e-4), {1, 3})
    small = ase.Atoms("H", cell=[0.2, 3, 3], pbc=[True, True, True])
    assert closest_pair(from_atoms(small)) == (pytest.approx(0.2), 0, 0)
    assert closest_pair(from_atoms(ase.Atoms("H")))[0] == np.inf


def test_atoms_in_one_place_are_refused():
    check_contacts(from_atoms(ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.31]])))
    with pytest.raises(ValueError, match=r"atoms 0 and 1 only 0\.290 angstrom apart"):
        check_contacts(from_atoms(ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.29]])))
    with pytest.raises(ValueError, match=r"atom 0 and its own image only 0\.200"):
        check_contacts(from_atoms(ase.Atoms("H", cell=[0.2, 3, 3], pbc=True)))
