"""Energies per element: fitted, or read from lone atoms; and the unit of what is left."""

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from atomformer.data.dataset import from_rows
from atomformer.data.references import composition, fit_energy_scale, isolated_energies
from matterform.io.formats import write_structures

REFERENCES = {1: -13.587222780835477, 6: -1028.4, 8: -2042.6}  # eV
COMPOSITIONS = ([1, 1, 8], [6, 1, 1, 1, 1], [6, 8], [6, 8, 8], [8, 6, 1, 1])


def rows(left=0.0, forces=None):
    """A structure of each composition: the sum of references, `left` besides, and the same force on every atom."""
    found = []
    left = np.broadcast_to(left, len(COMPOSITIONS))
    for numbers, more in zip(COMPOSITIONS, left, strict=True):
        coords = np.arange(3 * len(numbers), dtype=float).reshape(-1, 3)
        row = {"input_ids": np.array(numbers), "coords": coords}
        row["total_energy"] = sum(REFERENCES[number] for number in numbers) + more
        if forces is not None:
            row["forces"] = np.full((len(numbers), 3), forces)
        found.append(row)
    return found


def test_composition_counts_every_element():
    found = composition(from_rows(rows()), np.array([1, 6, 8]))
    np.testing.assert_array_equal(found, [[2, 0, 1], [4, 1, 0], [0, 1, 1], [0, 1, 2], [2, 1, 1]])


def test_least_squares_recover_references_in_double_precision():
    scale = fit_energy_scale(from_rows(rows()), "total_energy", per_atom=False)
    assert dict(scale.references) == pytest.approx(REFERENCES, rel=1e-13)


def test_inseparable_elements_share_what_they_have_together():
    one = {"input_ids": np.array([1, 1, 8]), "coords": np.eye(3), "total_energy": -10.0}
    scale = fit_energy_scale(from_rows([one, {**one, "total_energy": -20.0}]), "total_energy", per_atom=False)
    assert dict(scale.references) == pytest.approx({1: -6.0, 8: -3.0})  # of least norm, -15 together
    assert scale.scale == pytest.approx(5.0)


@pytest.mark.parametrize("per_atom", [False, True])
def test_isolated_energies_are_shifted_alike_until_nothing_is_left_on_average(per_atom):
    left = np.array([3.0, -1.0, 2.0, 0.5, 1.0])
    scale = fit_energy_scale(from_rows(rows(left)), "total_energy", per_atom, isolated={**REFERENCES, 79: -1.0})
    atoms = np.array([len(numbers) for numbers in COMPOSITIONS])
    shift = left.sum() / atoms.sum()
    assert dict(scale.references) == pytest.approx({z: energy + shift for z, energy in REFERENCES.items()}, rel=1e-13)
    rest = left - shift * atoms
    assert rest.mean() == pytest.approx(0.0, abs=1e-12)
    rest = rest / atoms if per_atom else rest
    assert scale.scale == pytest.approx(np.sqrt(np.mean(rest**2)))
    assert scale.per_atom == per_atom


def test_forces_give_the_unit_where_they_are_known():
    known, unknown = rows(forces=3.0), rows([9.0, 0.0, 0.0, 0.0, 0.0])
    assert fit_energy_scale(from_rows(known + unknown), "total_energy", per_atom=False).scale == pytest.approx(3.0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_exact_fit_leaves_the_unit_1_ev(count):
    assert fit_energy_scale(from_rows(rows()[:count]), "total_energy", per_atom=False).scale == 1.0


def test_forces_that_are_all_0_give_no_unit():
    scale = fit_energy_scale(from_rows(rows([1.0, -2.0, 3.0, 4.0, 5.0], forces=0.0)), "total_energy", per_atom=False)
    assert 0.1 < scale.scale < 5.0


def test_structures_without_energy_do_not_count():
    unknown = {"input_ids": np.array([8, 8]), "coords": np.eye(3)[:2]}
    data = from_rows([*rows(), unknown])
    assert dict(fit_energy_scale(data, "total_energy", per_atom=False).references) == pytest.approx(REFERENCES)


@pytest.mark.parametrize(
    ("column", "isolated", "message"),
    [
        ("formation_energy", None, "no column 'formation_energy' to fit references to"),
        ("total_energy", {1: -13.0}, "the isolated atoms lack C, O; add one of every element"),
    ],
)
def test_what_cannot_be_fitted_is_named(column, isolated, message):
    with pytest.raises(ValueError, match=message):
        fit_energy_scale(from_rows(rows()), column, per_atom=False, isolated=isolated)


def lone(symbol: str, energy: float | None) -> ase.Atoms:
    atoms = ase.Atoms(symbol)
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_isolated_energies_are_read_by_atomic_number(tmp_path):
    write_structures(tmp_path / "atoms.xyz", [lone("H", -13.587222780835477), lone("C", -1029.4889999855063)])
    assert isolated_energies(tmp_path / "atoms.xyz") == pytest.approx({1: -13.58722278, 6: -1029.48899999}, abs=1e-8)


def test_the_published_isolated_atoms_of_acetylacetone_are_read(data_dir):
    energies = isolated_energies(data_dir / "acac_isolated_atoms.extxyz")
    assert set(energies) == {1, 6, 8}
    assert -3000 < energies[8] < energies[6] < energies[1] < -10


@pytest.mark.parametrize("wrong", [lone("H2", -30.0), lone("O", None)])
def test_what_is_no_lone_atom_with_energy_is_refused(tmp_path, wrong):
    if len(wrong) == 2:
        wrong.positions[1] = 1.0
    write_structures(tmp_path / "atoms.xyz", [lone("C", -1000.0), wrong])
    with pytest.raises(ValueError, match=r"atoms\.xyz: entry 1 must be a single atom with an energy"):
        isolated_energies(tmp_path / "atoms.xyz")
