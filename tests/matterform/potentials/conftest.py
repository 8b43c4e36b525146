"""Crystals, good and bad, and the laws that every potential must obey."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matterform.potentials.base import Potential


@pytest.fixture(scope="session")
def crystals() -> list[Structure]:
    """Four crystals of different sizes, moved off their symmetric places: NaCl, Si, CsCl and Cu."""
    rng = np.random.default_rng(0)
    face_centred = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    given = [
        Structure(Lattice.cubic(5.7), ["Na"] * 4 + ["Cl"] * 4, [*face_centred, *(face_centred + 0.5)]),
        Structure(Lattice(2.75 * (1 - np.eye(3))), ["Si"] * 2, [[0, 0, 0], [0.25, 0.25, 0.25]]),
        Structure(Lattice.cubic(4.2), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure(Lattice.cubic(3.7), ["Cu"] * 4, face_centred),
    ]
    return [_moved(structure, rng) for structure in given]


@pytest.fixture
def impossible() -> dict[str, Structure]:
    """What no model may answer, under a word of the reason."""
    cubic = Lattice.cubic(4)
    return {
        "below": Structure(cubic, ["Na", "Cl"], [[0, 0, 0], [0.01, 0, 0]]),
        "finite": Structure(cubic, ["Na"], [[float("nan"), 0, 0]]),
        "volume": Structure(Lattice([[4, 0, 0], [4, 0, 0], [0, 0, 4]]), ["Na"], [[0, 0, 0]]),
        "occupancy": Structure(cubic, [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]),
        "element": Structure(cubic, ["X"], [[0, 0, 0]]),
        "periodic": Structure(Lattice(4 * np.eye(3), pbc=(True, True, False)), ["Na"], [[0, 0, 0]]),
        "density": Structure(Lattice.cubic(1.2), ["H"], [[0, 0, 0]]),
        "no atoms": Structure(cubic, [], []),
    }


@pytest.fixture
def laws():
    """The laws, for a potential: `laws(potential, crystals, impossible, unlikely)`."""
    return _check_laws


def _check_laws(
    potential: Potential,
    crystals: list[Structure],
    impossible: dict[str, Structure],
    unlikely: dict[str, Structure],
    *,
    conservative: bool = True,
    step: float = 3e-3,
    tolerance: float = 0.01,
) -> None:
    """`unlikely` are crystals that this model refuses, under a word of the reason; `tolerance` is relative."""
    together = _check_companions(potential, crystals, {**impossible, **unlikely})
    _check_shapes(together, crystals)
    if conservative:
        _check_derivatives(potential, crystals[-1], together.forces[-1], together.stress[-1], step, tolerance)
    nothing = potential.predict([], "stress")
    assert len(nothing.energy) == len(nothing.problems) == len(nothing.forces) == 0
    assert nothing.stress.shape == (
        0,
        3,
        3,
    )


def _check_companions(potential: Potential, crystals: list[Structure], bad: dict[str, Structure]):
    """Bad structures have a reason and no numbers; good ones beside them are as if alone."""
    mixed = potential.predict([*bad.values(), *crystals], "stress")
    for index, word in enumerate(bad):
        assert word in mixed.problems[index], (word, mixed.problems[index])
        assert np.isnan(mixed.energy[index])
        assert mixed.forces[index] is None
        assert np.isnan(mixed.stress[index]).all()
    assert mixed.problems[len(bad) :] == [""] * len(crystals)
    together = type(mixed)(*(part[len(bad) :] for part in mixed))
    for index, crystal in enumerate(crystals):
        alone = potential.predict([crystal], "stress")
        np.testing.assert_allclose(together.energy[index], alone.energy[0], rtol=2e-6, atol=2e-5)
        np.testing.assert_allclose(together.forces[index], alone.forces[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(together.stress[index], alone.stress[0], rtol=1e-4, atol=1e-5)
    return together


def _check_shapes(together, crystals: list[Structure]) -> None:
    assert [forces.shape for forces in together.forces] == [(len(crystal), 3) for crystal in crystals]
    assert np.isfinite(together.energy).all()
    assert np.isfinite(together.stress).all()
    assert len(set(np.round(together.energy, 6))) == len(crystals)


def _check_derivatives(potential, structure, forces, stress, step: float, tolerance: float) -> None:
    """Forces (eV/Å) and stress (eV/Å³) against differences of energies; `step` in Å, and as strain."""
    frac, cell = structure.frac_coords, structure.lattice.matrix

    def changed(frac, cell):
        return Structure(Lattice(cell), structure.species, frac)

    def slopes(change, directions):
        pairs = [change(sign * step * direction) for direction in directions for sign in (1, -1)]
        energy = potential.predict(pairs, "energy").energy.reshape(-1, 2)
        return (energy[:, 0] - energy[:, 1]) / (2 * step)

    shifts = np.eye(len(frac) * 3)[:4].reshape(4, -1, 3)
    by_place = slopes(lambda shift: changed(frac + shift @ np.linalg.inv(cell), cell), shifts)
    units = np.eye(9).reshape(9, 3, 3)
    strains = (units + units.transpose(0, 2, 1)) / 2
    by_strain = slopes(lambda strain: changed(frac, cell @ (np.eye(3) + strain)), strains).reshape(3, 3)
    for given, expected in ((forces.ravel()[:4], -by_place), (stress, by_strain / structure.volume)):
        np.testing.assert_allclose(given, expected, atol=tolerance * np.abs(expected).max())


def _moved(structure: Structure, rng) -> Structure:
    places = structure.cart_coords + 0.1 * rng.normal(size=(len(structure), 3))
    strain = np.eye(3) + 0.03 * rng.normal(size=(3, 3))
    moved = Structure(structure.lattice, structure.species, places, coords_are_cartesian=True)
    return Structure(Lattice(structure.lattice.matrix @ strain), structure.species, moved.frac_coords)
