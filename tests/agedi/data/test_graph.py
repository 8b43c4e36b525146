"""Structures from ASE and back, padding, masks, confinement and canonical cells."""

import logging

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixBondLength

from agedi.data.graph import free_atoms, from_atoms, pad_graph, stack_graphs, to_atoms


@pytest.fixture
def slab():
    """Copper with an oxygen atom and a fixed bottom layer; periodic in the plane, without a third vector."""
    atoms = fcc111("Cu", (2, 2, 2))
    add_adsorbate(atoms, "O", 1.2, "fcc")
    atoms.set_constraint(FixAtoms([0, 1, 2, 3]))
    assert not atoms.cell[2].any()
    return atoms


@pytest.mark.parametrize("name", ["bulk", "slab", "molecule"])
def test_atoms_survive_the_way_there_and_back(name, slab):
    atoms = {"bulk": bulk("NaCl", "rocksalt", 5.64), "slab": slab, "molecule": molecule("CH3OH")}[name]
    back = to_atoms(pad_graph(from_atoms(atoms, mask="MaskFixed"), 12))
    np.testing.assert_array_equal(back.numbers, atoms.numbers)
    np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-6)
    np.testing.assert_allclose(back.cell, atoms.cell, atol=1e-6)
    np.testing.assert_array_equal(back.pbc, atoms.pbc)
    fixed = [constraint.index.tolist() for constraint in back.constraints]
    assert fixed == [constraint.index.tolist() for constraint in atoms.constraints]


def test_energy_and_forces_go_into_a_calculator(slab):
    graph = pad_graph(from_atoms(slab), 10)
    forces = np.arange(30.0).reshape(10, 3)
    atoms = to_atoms(graph, energy=-3.5, forces=forces)
    assert atoms.get_potential_energy() == -3.5
    np.testing.assert_array_equal(atoms.get_forces(), forces[:9])
    assert atoms.calc.name == "AGeDi"
    assert to_atoms(graph).calc is None


def test_a_missing_cell_is_the_identity_unless_the_structure_is_periodic():
    atoms = molecule("H2O")
    np.testing.assert_array_equal(from_atoms(atoms).cell, np.eye(3))
    atoms.pbc = [True, False, True]
    with pytest.raises(ValueError, match=r"periodic along a, c but has no cell vector"):
        from_atoms(atoms)


def test_flat_cells_and_impossible_positions_are_refused():
    flat = ase.Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True)
    with pytest.raises(ValueError, match="flat cell"):
        from_atoms(flat)
    with pytest.raises(ValueError, match="no number, of atom 1"):
        from_atoms(ase.Atoms("H2", positions=[[0, 0, 0], [np.nan, 0, 0]]))
    with pytest.raises(ValueError, match="no atoms"):
        from_atoms(ase.Atoms())


def test_mask_fixed_takes_every_fix_atoms_and_names_what_it_does_not_know(slab):
    slab.set_constraint([FixAtoms([0, 1]), FixAtoms(mask=[i == 5 for i in range(9)])])
    np.testing.assert_array_equal(np.flatnonzero(from_atoms(slab, mask="MaskFixed").mask), [0, 1, 5])
    assert not from_atoms(slab).mask.any()
    np.testing.assert_array_equal(free_atoms(pad_graph(from_atoms(slab, mask="MaskFixed"), 11)).sum(), 6)
    slab.set_constraint([FixAtoms([0]), FixBondLength(0, 1)])
    with pytest.raises(ValueError, match="FixBondLength"):
        from_atoms(slab, mask="MaskFixed")
    from_atoms(slab)  # which ignores constraints
    with pytest.raises(ValueError, match="mask must be"):
        from_atoms(slab, mask="Fixed")


def test_confinement_holds_free_atoms_only(slab):
    top, layer = slab.positions[8, 2], slab.positions[4, 2]
    graph = from_atoms(slab, mask="MaskFixed", confinement=(layer, top + 1))
    np.testing.assert_allclose(graph.confinement, [layer, top + 1], rtol=1e-6)
    assert from_atoms(slab).confinement.tolist() == [-np.inf, np.inf]
    with pytest.raises(ValueError, match=r"4 free atoms outside .* such as atom 0 at z = 0.000; use 0 to 5, or fix"):
        from_atoms(slab, confinement=(layer, 5.0))
    with pytest.raises(ValueError, match=r"1 free atoms outside .* use 1 to 4"):
        from_atoms(slab, mask="MaskFixed", confinement=(1.0, top - 0.5))
    with pytest.raises(ValueError, match="z_min < z_max"):
        from_atoms(slab, confinement=(3.0, 3.0))


def turned(rng, atoms):
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    atoms.set_cell(atoms.cell @ turn, scale_atoms=True)
    return atoms


@pytest.mark.parametrize("hand", [1, -1])
def test_canonical_cell_is_a_turn_into_a_lower_triangle(hand, rng, caplog):
    atoms = turned(rng, bulk("Ti", cubic=False) * (1, 2, 1))
    atoms.set_cell(atoms.cell[[0, 1, 2] if hand == 1 else [1, 0, 2]])
    atoms.rattle(0.2, rng=rng)
    graph = from_atoms(atoms, canonical_cell=True)
    assert "rotated" in caplog.text
    np.testing.assert_allclose(graph.cell, np.tril(graph.cell))
    np.testing.assert_allclose(np.linalg.norm(graph.cell, axis=1), atoms.cell.lengths(), rtol=1e-6)
    fractional = np.linalg.solve(graph.cell.T.astype(float), graph.pos.T).T
    np.testing.assert_allclose(fractional, atoms.cell.scaled_positions(atoms.positions), atol=1e-5)
    after, before = (a.get_all_distances(mic=True) for a in (to_atoms(graph), atoms))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert np.sign(np.linalg.det(graph.cell)) == hand  # no mirror image
    assert (np.diag(graph.cell)[:2] > 0).all()


def test_lower_triangular_cells_stay_as_they_are(caplog):
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(np.tril(atoms.cell[:] + 0.3), scale_atoms=True)
    with caplog.at_level(logging.WARNING):
        plain, canonical = from_atoms(atoms), from_atoms(atoms, canonical_cell=True)
    jax.tree.map(np.testing.assert_array_equal, plain, canonical)
    assert not caplog.records


def test_stacked_graphs_are_a_batch(slab):
    graphs = [pad_graph(from_atoms(slab), 12), pad_graph(from_atoms(molecule("CO")), 12)]
    batch = stack_graphs(graphs)
    assert batch.x.shape == (2, 12)
    assert jax.vmap(lambda graph: jnp.sum(free_atoms(graph)))(batch).tolist() == [9, 2]
    assert not batch.x[1, 2:].any()
    with pytest.raises(ValueError, match="9 atoms does not fit into 8"):
        pad_graph(from_atoms(slab), 8)


def test_atoms_of_no_element_are_refused():
    with pytest.raises(ValueError, match="has atom 1 of no element"):
        from_atoms(ase.Atoms("CuX", positions=[[0, 0, 0], [0, 0, 2]]))
