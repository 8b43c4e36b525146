import ase
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from pymatgen.core import Lattice, Structure

from matterform.potentials.ase import ase_potential
from matterform.potentials.base import Potential, Predictions
from matterform.potentials.relax import RelaxConfig, relax

TIGHT = RelaxConfig(max_force=0.01)


@pytest.fixture
def alloys(crystals):
    """Rattled and strained Cu4 and Cu2Au2, 7 % too large."""
    copper = crystals[-1].apply_strain(0.02, inplace=False)
    alloy = Structure(copper.lattice, ["Cu", "Cu", "Au", "Au"], copper.frac_coords).apply_strain(0.07, inplace=False)
    return [copper, alloy]


def minimum(structure: Structure, cell: bool = True) -> float:
    """ASE's lowest energy (eV)."""
    atoms = ase.Atoms(structure.atomic_numbers, structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
    atoms.calc = EMT()
    BFGS(FrechetCellFilter(atoms) if cell else atoms, logfile=None).run(fmax=0.001, steps=300)
    return float(atoms.get_potential_energy())


@pytest.mark.parametrize("cell", [True, False])
def test_finds_the_minimum_that_ase_finds(alloys, cell):
    potential = ase_potential(EMT())
    result = relax(potential, alloys, 300, RelaxConfig(max_force=0.002, cell=cell))
    assert result.problems == ["", ""]
    assert result.converged.all()
    assert (result.max_force <= 0.002).all()
    np.testing.assert_allclose(result.energy, [minimum(structure, cell) for structure in alloys], atol=1e-4)
    np.testing.assert_allclose(potential.predict(result.structures, "energy").energy, result.energy, atol=1e-9)
    volumes = [(new.volume, old.volume) for new, old in zip(result.structures, alloys, strict=True)]
    assert all((new == pytest.approx(old)) is not cell for new, old in volumes)


def test_every_structure_relaxes_as_if_alone(alloys):
    potential = ase_potential(EMT())
    together = relax(potential, alloys, 100, TIGHT)
    assert together.steps[0] != together.steps[1]
    for index, structure in enumerate(alloys):
        alone = relax(potential, [structure], 100, TIGHT)
        assert (alone.energy[0], alone.steps[0]) == (together.energy[index], together.steps[index])


def test_a_few_steps_go_down_and_more_go_further(alloys):
    potential = ase_potential(EMT())
    energies = [relax(potential, alloys, steps).energy for steps in (0, 1, 5, 20)]
    np.testing.assert_array_equal(energies[0], potential.predict(alloys, "energy").energy)
    assert (np.diff(energies, axis=0) < 0).all()
    lowest = np.array([minimum(structure) for structure in alloys])
    assert (energies[3] - lowest < 0.1 * (energies[0] - lowest)).all()


def test_only_what_moves_is_evaluated(alloys):
    seen = []

    def predict(structures, quantity):
        seen.append(len(structures))
        return emt.predict(structures, quantity)

    emt = ase_potential(EMT())
    result = relax(Potential("counted", predict, False), alloys, 100, TIGHT)
    assert len(seen) == result.steps.max() + 1
    assert sum(seen) == result.steps.sum() + 2


def test_moves_are_bounded(alloys):
    # Two atoms 1.2 Å apart push with some hundred eV/Å; the cell is 30 % too small.
    close = Structure(Lattice.cubic(3.0), ["Cu", "Cu"], [[0, 0, 0], [0.4, 0, 0]])
    config = RelaxConfig(max_displacement_ang=0.1, max_strain=0.02)
    (moved,) = relax(ase_potential(EMT()), [close], 1, config).structures
    strain = moved.lattice.matrix @ np.linalg.inv(close.lattice.matrix) - np.eye(3)
    steps = (moved.frac_coords - close.frac_coords) @ close.lattice.matrix
    longest, largest = np.linalg.norm(steps, axis=-1).max(), np.linalg.norm(strain, ord=2)
    assert longest <= 0.1 + 1e-9
    assert largest <= 0.02 + 1e-9
    assert longest == pytest.approx(0.1) or largest == pytest.approx(0.02)


def test_never_ends_above_the_start_though_forces_mislead(alloys):
    emt = ase_potential(EMT())

    def predict(structures, quantity):
        result = emt.predict(structures, quantity)
        return result._replace(forces=[-forces for forces in result.forces], stress=-result.stress)

    result = relax(Potential("uphill", predict, False), alloys, 5)
    np.testing.assert_array_equal(result.energy, emt.predict(alloys, "energy").energy)
    assert result.structures == alloys
    assert not result.converged.any()
    assert (result.steps == 5).all()


def test_trouble_on_the_way_keeps_the_last_good_state(alloys, impossible):
    emt, calls = ase_potential(EMT()), []

    def predict(structures, quantity):
        calls.append(len(structures))
        result = emt.predict(structures, quantity)
        if len(calls) == 4:  # the fourth evaluation of the first alloy fails
            return Predictions(
                np.array([np.nan, *result.energy[1:]]),
                [None, *result.forces[1:]],
                np.array([np.full((3, 3), np.nan), *result.stress[1:]]),
                ["it broke", *result.problems[1:]],
            )
        return result

    overlap = impossible["below"]
    result = relax(Potential("fragile", predict, False), [alloys[0], overlap, alloys[1]], 6)
    assert result.problems[0] == "after 3 steps: it broke"
    assert "below" in result.problems[1]
    assert result.problems[2] == ""
    assert result.energy[0] == relax(emt, alloys[:1], 2).energy[0]
    assert result.steps[0] == 3
    assert np.isnan(result.energy[1])
    assert result.structures[1] is overlap
    assert result.steps[1] == 0
    assert result.energy[2] == relax(emt, alloys[1:], 6).energy[0]


def test_nothing_to_relax():
    result = relax(ase_potential(EMT()), [], 5)
    assert result.structures == []
    assert result.energy.shape == (0,)


def test_symmetry_and_labels_are_kept():
    labelled = Structure(
        Lattice.cubic(3.9), ["Cu", "Au", "Au", "Au"], [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    )
    labelled.add_site_property("tag", [1, 2, 3, 4])
    (relaxed,) = relax(ase_potential(EMT()), [labelled], 40).structures
    assert relaxed.get_space_group_info(1e-5)[1] == labelled.get_space_group_info(1e-5)[1] == 221
    assert relaxed.site_properties["tag"] == [1, 2, 3, 4]
    assert relaxed.volume != pytest.approx(labelled.volume, rel=0.01)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="max_strain"):
        RelaxConfig(max_strain=0.0)
    with pytest.raises(ValueError, match="steps"):
        relax(ase_potential(EMT()), [], -1)


def test_chgnet_takes_rattled_crystals_back(crystals):
    pytest.importorskip("chgnet")
    from matterform.potentials.chgnet import load_chgnet

    potential = load_chgnet()
    perfect = [
        Structure(Lattice(2.85 * (1 - np.eye(3))), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure(Lattice(2.735 * (1 - np.eye(3))), ["Si"] * 2, [[0, 0, 0], [0.25, 0.25, 0.25]]),
    ]
    expected = relax(potential, perfect, 20, RelaxConfig(max_force=0.01))
    result = relax(potential, crystals[:2], 60, RelaxConfig(max_force=0.03))
    assert result.converged.all()
    counts = np.array([4, 1])  # of perfect cells in the rattled ones
    np.testing.assert_allclose(result.energy / counts / 2, expected.energy / 2, atol=2e-3)
    # Rock salt's and diamond's edges in PBE are 5.70 and 5.47 Å (Materials Project).
    edges = [(4 * crystal.volume / count) ** (1 / 3) for crystal, count in zip(result.structures, counts, strict=True)]
    assert edges == pytest.approx([5.70, 5.47], rel=0.01)
