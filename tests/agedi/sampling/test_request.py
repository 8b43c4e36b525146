"""Everything that can be missing, contradictory or out of range when structures are asked for."""

import ase
import ase.build
import numpy as np
import pytest

from agedi.config import ConditionConfig, DiffusionConfig
from agedi.sampling.request import SampleRequest, make_conditions, make_initial_state

CELL = [4.0, 4.0, 8.0]
CRYSTAL = DiffusionConfig(noisers=("CellPositions",), sigma_max=2.0, species=(8, 29, 79))
TYPED = DiffusionConfig(noisers=("CellPositions", "Types"), sigma_max=2.0, species=(8, 29, 79))
ONLY_TYPES = DiffusionConfig(noisers=("Types",), species=(8, 29, 79))
MOLECULE = DiffusionConfig(noisers=("Positions",), sigma_max=2.0, species=(1, 6, 8))
SLAB = DiffusionConfig(
    noisers=("ConfinedCellPositions",), sigma_max=2.0, species=(29, 79), confinement=(5.0, 8.0), pbc=(True, True, False)
)
CONDITIONAL = DiffusionConfig(
    noisers=("CellPositions",),
    sigma_max=2.0,
    species=(29,),
    conditions=(
        ConditionConfig(name="energy"),
        ConditionConfig(name="group", kind="integer", num_classes=231),
        ConditionConfig(name="charge", kind="node"),
    ),
)
SURFACE = ase.build.fcc111("Cu", (2, 2, 2), vacuum=6.0)
THREE = np.arange(9.0).reshape(3, 3)


def start(config, **request):
    return make_initial_state(config, SampleRequest(**request))


@pytest.mark.parametrize(
    ("config", "asked", "words"),
    [
        # how many atoms, and which
        (CRYSTAL, {"cell": CELL}, "does not sample species: give formula or atomic_numbers"),
        (CRYSTAL, {"cell": CELL, "num_atoms": 3}, "does not sample species: give formula or atomic_numbers"),
        (TYPED, {"cell": CELL}, "the number of atoms is not given"),
        (TYPED, {"cell": CELL, "num_atoms": 0}, "num_atoms must be a whole number of at least 1; got 0"),
        (TYPED, {"cell": CELL, "num_atoms": True}, "num_atoms must be a whole number"),
        (CRYSTAL, {"cell": CELL, "formula": "Cu2O", "num_atoms": 4}, "num_atoms for 4 atoms and formula .* for 3"),
        (CRYSTAL, {"cell": CELL, "atomic_numbers": [29], "num_atoms": 4}, "contradicting numbers of atoms"),
        (CRYSTAL, {"cell": CELL, "formula": "Cu2O", "atomic_numbers": [29, 29]}, "contradict each other"),
        (CRYSTAL, {"cell": CELL, "formula": "copper"}, "formula must be one such as Cu2O; got 'copper'"),
        (CRYSTAL, {"cell": CELL, "formula": ""}, "formula must name at least one atom"),
        (CRYSTAL, {"cell": CELL, "formula": "Cu0"}, "formula must name at least one atom"),
        (CRYSTAL, {"cell": CELL, "formula": "Xx2"}, "unknown chemical symbol 'Xx'"),
        (CRYSTAL, {"cell": CELL, "atomic_numbers": []}, "atomic_numbers must be whole numbers from 1 to 118"),
        (CRYSTAL, {"cell": CELL, "atomic_numbers": [0, 29]}, "atomic_numbers must be whole numbers from 1 to 118"),
        (CRYSTAL, {"cell": CELL, "atomic_numbers": [29.5]}, "atomic_numbers must be whole numbers from 1 to 118"),
        (CRYSTAL, {"cell": CELL, "formula": "CuPt"}, "formula has Pt, but the model was trained on O, Cu, Au"),
        (TYPED, {"cell": CELL, "formula": "CuPt"}, "formula has Pt, but the model was trained on O, Cu, Au"),
        (CRYSTAL, {"cell": CELL, "atomic_numbers": [47]}, "atomic_numbers has Ag"),
        # positions
        (CRYSTAL, {"cell": CELL, "formula": "Cu2O", "positions": THREE}, "positions contradict the model"),
        (ONLY_TYPES, {"cell": CELL, "num_atoms": 3}, "does not sample positions: give positions"),
        (ONLY_TYPES, {"cell": CELL, "num_atoms": 2, "positions": THREE}, "num_atoms for 2 atoms and positions for 3"),
        (ONLY_TYPES, {"cell": CELL, "positions": [[0.0, 1.0]]}, "positions must be 1 times 3 finite numbers"),
        (ONLY_TYPES, {"cell": CELL, "positions": [[0.0, 1.0, np.nan]]}, "positions must be 1 times 3 finite numbers"),
        # cell and periodicity
        (CRYSTAL, {"formula": "Cu"}, "a cell is needed for periodic structures"),
        (MOLECULE, {"formula": "CO", "pbc": True}, "a cell is needed for periodic structures"),
        (CRYSTAL, {"formula": "Cu", "cell": [4.0, 4.0]}, "cell must be three lengths"),
        (CRYSTAL, {"formula": "Cu", "cell": [4.0, 4.0, np.inf]}, "cell must be three lengths"),
        (CRYSTAL, {"formula": "Cu", "cell": [4.0, 4.0, 0.0]}, "must not be zero or lie in a plane"),
        (CRYSTAL, {"formula": "Cu", "cell": [[1, 0, 0], [2, 0, 0], [0, 0, 4]]}, "must not be zero or lie in a plane"),
        (CRYSTAL, {"formula": "Cu", "cell": [4.0, 4.0, 4.0, 10.0, 10.0, 170.0]}, "does not exist: check its angles"),
        (CRYSTAL, {"formula": "Cu", "cell": CELL, "pbc": "yes"}, "pbc must be one or three truth values"),
        (CRYSTAL, {"formula": "Cu", "cell": CELL, "pbc": [True, False]}, "pbc must be one or three truth values"),
        (SLAB, {"formula": "Cu", "cell": CELL, "pbc": False}, "needs pbc along the first two vectors"),
        (SLAB, {"formula": "Cu", "cell": [[4, 0, 1], [0, 4, 0], [0, 0, 8]]}, "lie in the xy plane"),
        # template
        (SLAB, {"formula": "Cu", "template": "slab.traj"}, "template must be ASE's Atoms or an AtomsGraph; got str"),
        (SLAB, {"formula": "Cu", "template": ase.Atoms()}, "template has no atoms"),
        (SLAB, {"formula": "Cu", "template": SURFACE, "cell": CELL}, "cell and the template's cell contradict"),
        (SLAB, {"formula": "Cu", "template": SURFACE, "pbc": True}, "pbc .* and the template's .* contradict"),
        (CRYSTAL, {"formula": "Cu", "template": ase.build.bulk("Ag")}, "template has Ag, but the model was trained on"),
        (SLAB, {"template": SURFACE}, "give formula or atomic_numbers"),
        # confinement
        (CRYSTAL, {"formula": "Cu", "cell": CELL, "confinement": (1.0, 2.0)}, "confinement contradicts the model"),
        (SLAB, {"formula": "Cu", "cell": CELL, "confinement": (2.0, 1.0)}, "confinement must be z_min < z_max"),
        (SLAB, {"formula": "Cu", "cell": CELL, "confinement": (1.0,)}, "confinement must be z_min < z_max"),
        (SLAB, {"formula": "Cu", "cell": CELL, "confinement": (1.0, np.nan)}, "confinement must be z_min < z_max"),
        (SLAB, {"formula": "Cu", "cell": CELL, "pbc": True, "confinement": (0.0, 9.0)}, "wider than the cell is high"),
        # properties
        (CRYSTAL, {"formula": "Cu", "cell": CELL, "property": {"energy": 1.0}}, "which is not conditioned on any"),
        (CONDITIONAL, {"formula": "Cu", "cell": CELL, "property": {"gap": 1.0}}, "on energy, group, charge"),
        (CONDITIONAL, {"formula": "Cu", "cell": CELL, "property": {"energy": 1.0}}, "give group, charge too, or none"),
    ],
)
def test_what_is_missing_or_contradictory_is_said(config, asked, words):
    with pytest.raises(ValueError, match=words):
        start(config, **asked)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"energy": "low"}, "energy must be a number; got 'low'"),
        ({"energy": np.nan}, "energy must be finite"),
        ({"energy": [1.0, 2.0]}, "energy must be one number; got shape"),
        ({"group": 1.5}, "group must be a whole number below 231"),
        ({"group": 231}, "group must be a whole number below 231"),
        ({"group": -1}, "group must be a whole number below 231"),
        ({"charge": [0.0, 1.0]}, "one for each of the 3 atoms"),
    ],
)
def test_values_of_properties_are_checked(changed, words):
    with pytest.raises(ValueError, match=words):
        make_conditions(CONDITIONAL, {"energy": -1.0, "group": 3, "charge": 0.5} | changed, 3)


def test_properties_become_arrays_of_their_kind():
    made = make_conditions(CONDITIONAL, {"charge": [0.1, 0.2, 0.3], "energy": -3, "group": 225}, 3)
    assert list(made) == ["energy", "group", "charge"]
    assert made["energy"].dtype == np.float32
    assert made["group"].dtype == np.int32
    assert made["energy"] == -3
    assert made["group"] == 225
    np.testing.assert_allclose(made["charge"], [0.1, 0.2, 0.3])
    same = make_conditions(CONDITIONAL, {"charge": 0.5, "energy": -3, "group": 225}, 3)
    np.testing.assert_allclose(same["charge"], [0.5] * 3)
    assert make_conditions(CONDITIONAL, None, 3) == make_conditions(CONDITIONAL, {}, 3) == {}


def test_a_template_comes_first_and_is_fixed():
    found = start(SLAB, formula="AuCu", template=SURFACE)
    assert found.graph.mask.tolist() == [True] * 8 + [False] * 2
    assert found.graph.x.tolist() == [29] * 8 + [79, 29]
    np.testing.assert_array_equal(found.atoms.positions[:8], SURFACE.positions)
    np.testing.assert_array_equal(found.atoms.cell, SURFACE.cell)
    assert found.graph.pbc.tolist() == [True, True, False]
    np.testing.assert_allclose(found.graph.confinement, (5.0, 8.0))
    assert found.remaining is None


def test_a_composition_is_prescribed_or_drawn():
    """Where the model draws species, a formula counts them and num_atoms leaves them open."""
    counted = start(TYPED, formula="Cu2O", cell=CELL)
    assert counted.remaining is not None
    assert counted.remaining.tolist() == [1, 2, 0]
    assert counted.graph.x.tolist() == [0, 0, 0]
    assert start(TYPED, atomic_numbers=[29, 8, 29], cell=CELL, num_atoms=3).remaining.tolist() == [1, 2, 0]
    free = start(TYPED, num_atoms=5, cell=CELL)
    assert free.remaining is None
    assert len(free.graph.x) == 5
    on_oxygen = start(TYPED, formula="Au", template=ase.Atoms("O", cell=CELL, pbc=True))
    assert on_oxygen.graph.x.tolist() == [8, 0]
    assert on_oxygen.remaining.tolist() == [0, 0, 1]


def test_positions_that_are_not_drawn_are_taken():
    found = start(ONLY_TYPES, positions=THREE, cell=CELL)
    np.testing.assert_array_equal(found.graph.pos, THREE.astype(np.float32))
    assert found.graph.x.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("config", "asked", "cell", "pbc"),
    [
        (CRYSTAL, {"cell": CELL}, np.diag(CELL), [True] * 3),
        (CRYSTAL, {"cell": CELL, "pbc": (1, 1, 0)}, np.diag(CELL), [True, True, False]),
        (CRYSTAL, {"pbc": False}, np.eye(3), [False] * 3),
        (MOLECULE, {}, np.eye(3), [False] * 3),
        (SLAB, {"cell": CELL}, np.diag(CELL), [True, True, False]),
        (SLAB, {"template": SURFACE, "cell": SURFACE.cell.cellpar()}, SURFACE.cell.array, [True, True, False]),
        (
            DiffusionConfig(sigma_max=2.0, cell=tuple(np.diag(CELL).ravel()), pbc=(True, False, True)),
            {},
            np.diag(CELL),
            [True, False, True],
        ),
    ],
)
def test_cells_come_from_arguments_templates_or_training_data(config, asked, cell, pbc):
    species = "CO" if config is MOLECULE else "Cu"
    found = start(config, formula=species, **asked)
    np.testing.assert_allclose(found.graph.cell, cell, rtol=1e-6, atol=1e-6)
    assert found.graph.pbc.tolist() == pbc
