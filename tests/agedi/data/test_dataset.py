"""What a data set reads of its structures, how it repeats and cuts them, and what it refuses."""

import logging

import ase
import jax
import numpy as np
import pytest
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedPlane

from agedi.data.dataset import (
    all_graphs,
    closest_pair,
    condition_kinds,
    create_dataset,
    fingerprint,
    fit_reference_energies,
    lengths,
    make_take,
    phases,
    rows_of_epoch,
)
from agedi.data.graph import from_atoms, to_atoms


def labelled(atoms, **results):
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def surfaces():
    """Three slabs of different sizes with an adatom, labelled by EMT, and properties of every kind."""
    structures = []
    for i, (metal, size) in enumerate([("Cu", (1, 2, 2)), ("Pt", (2, 2, 1)), ("Au", (2, 3, 2))]):
        atoms = fcc111(metal, size, vacuum=5.0)
        add_adsorbate(atoms, "O", 1.3 + 0.1 * i, "fcc")
        atoms.pbc = [True, True, False]
        atoms.set_constraint(FixAtoms([0]))
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
        labelled(atoms, energy=energy, forces=forces)
        atoms.info |= {"gap": 0.5 * i, "class": i, "charge": 2.0 + i}
        atoms.new_array("height", atoms.positions[:, 2] + 1)
        structures.append(atoms)
    return structures


def test_batches_hold_the_structures_and_their_labels(surfaces):
    dataset = create_dataset(surfaces, mask="MaskFixed", force_field=True, confinement=(1.0, 12.0))
    batch = make_take(dataset)(np.array([2, 0]), 14)
    for row, atoms in enumerate([surfaces[2], surfaces[0]]):
        back = to_atoms(jax.tree.map(lambda leaf, row=row: leaf[row], batch.graph))
        np.testing.assert_array_equal(back.numbers, atoms.numbers)
        np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-5)
        np.testing.assert_allclose(back.cell, atoms.cell, atol=1e-5)
        assert back.constraints[0].index.tolist() == [0]
        n = len(atoms)
        assert batch.energy[row] == np.float32(atoms.get_potential_energy())
        np.testing.assert_allclose(batch.forces[row, :n], atoms.get_forces(apply_constraint=False), rtol=1e-5)
        assert np.abs(batch.forces[row, 0]).max() > 1e-3  # of a fixed atom, without its constraint
        assert not batch.forces[row, n:].any()
    assert batch.diffuse.all()
    assert batch.index.tolist() == [2, 0]
    for leaf in jax.tree.leaves(batch):
        assert leaf.dtype in (np.float32, np.int32, bool)


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


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"gap": None}, {"conditioning": "gap"}, "structure 1 has gap = None"),
        (
            {},
            {"conditioning": "bandgap"},
            r"structure 0 has no property 'bandgap'.*2 more are refused: 1, 2",
        ),
        ({"gap": np.nan}, {"conditioning": "gap"}, "structure 1 has gap = nan"),
        ({"gap": "large"}, {"conditioning": "gap"}, "'large', which is no number"),
        ({"gap": [1.0, 2.0]}, {"conditioning": "gap"}, r"structure 1 has gap of shape \(2,\); .*a single number"),
        ({"class": 1.5}, {"conditioning": "class", "conditioning_type": "integer"}, "whole numbers"),
        ({}, {"conditioning": "gap", "conditioning_type": "node"}, "a number for each of 5 atoms"),
        ({}, {"conditioning": "global_number_of_nothing"}, "atoms.get_global_number_of_nothing"),
        ({}, {"conditioning": "gap", "conditioning_type": "vector"}, "must be one of scalar, integer, node"),
        ({}, {"conditioning": "gap,charge", "conditioning_type": ["scalar"] * 3}, "one for each of gap, charge"),
        ({}, {"conditioning": ["gap", "gap"]}, "twice"),
        ({}, {"repeat": 2}, "repeat needs repeat_epoch"),
        ({}, {"repeat_epoch": 2}, "repeat_epoch needs repeat"),
        ({}, {"repeat": 1, "repeat_epoch": 2}, "at least 2"),
        ({}, {"repeat": 2, "repeat_epoch": 0}, "at least 1"),
        (
            {},
            {"confinement": (0.0, 6.5)},
            "structure 0 has 3 free atoms outside the confinement 0 to 6.5 .* use 0 to 9, or fix",
        ),
        ({}, {"regressor_data": [ase.Atoms("Cu")]}, "only for the force field"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(surfaces, change, options, message):
    surfaces[1].info |= change
    with pytest.raises(ValueError, match=message):
        create_dataset(surfaces, **options)


def test_faulty_structures_are_refused_by_name(surfaces):
    surfaces[2].set_constraint(FixAtoms(range(13)))
    with pytest.raises(ValueError, match="structure 2 has only fixed atoms"):
        create_dataset(surfaces, mask="MaskFixed")
    surfaces[2].set_constraint(FixedPlane([0], (0, 0, 1)))
    create_dataset(surfaces)
    with pytest.raises(ValueError, match="structure 2 has the constraint FixedPlane"):
        create_dataset(surfaces, mask="MaskFixed")
    with pytest.raises(ValueError, match="no structure"):
        create_dataset([])
    with pytest.raises(ValueError, match="structure 3 is not periodic along a and b"):
        create_dataset([*surfaces, molecule("CO")], repeat=2, repeat_epoch=1)
    surfaces[1].positions[3] = surfaces[1].positions[0] + surfaces[1].cell[0] + [0.1, 0, 0]
    with pytest.raises(ValueError, match=r"structure 1 has atoms 0 and 3 only 0.100 angstrom apart"):
        create_dataset(surfaces)
    with pytest.raises(ValueError, match="regressor structure 0 has atoms 0 and 3"):
        create_dataset(surfaces[:1], force_field=True, regressor_data=[surfaces[1]])


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


def test_regressor_structures_come_last_and_do_not_diffuse(surfaces):
    dataset = create_dataset(
        surfaces[:2],
        conditioning="gap",
        force_field=True,
        regressor_data=[surfaces[2]],
        repeat=2,
        repeat_epoch=1,
        confinement=(4.0, 12.0),
    )
    assert dataset.diffuse.tolist() == [True, True, False]
    assert dataset.energies[2] == surfaces[2].get_potential_energy()
    assert rows_of_epoch(dataset, np.array([0, 2]), 1).tolist() == [0, 2, 3]


def test_repeated_cells_equal_those_of_ase(surfaces):
    dataset = create_dataset(
        surfaces,
        mask="MaskFixed",
        conditioning="energy,gap,height",
        conditioning_type=["scalar", "scalar", "node"],
        repeat=3,
        repeat_epoch=50,
    )
    take, graphs = make_take(dataset), all_graphs(dataset)
    for row, (k, atoms) in enumerate((k, atoms) for k in (1, 2, 3) for atoms in surfaces):
        expected = atoms.repeat((k, k, 1))
        batch = take(np.array([row, 0]), len(expected) + 3)
        back = to_atoms(jax.tree.map(lambda leaf: leaf[0], batch.graph))
        for found in (back, to_atoms(graphs[row])):
            np.testing.assert_array_equal(found.numbers, expected.numbers)
            np.testing.assert_allclose(found.positions, expected.positions, atol=1e-5)
            np.testing.assert_allclose(found.cell, expected.cell, atol=1e-5)
            assert found.constraints[0].index.tolist() == expected.constraints[0].index.tolist()
        expected.calc = EMT()  # whose energy of k x k cells is k x k times that of one
        np.testing.assert_allclose(batch.energy[0], expected.get_potential_energy(), rtol=1e-5)
        np.testing.assert_allclose(
            batch.forces[0, : len(expected)], expected.get_forces(apply_constraint=False), atol=1e-5
        )
        np.testing.assert_allclose(batch.conditions["energy"][0], batch.energy[0], rtol=1e-6)
        assert batch.conditions["gap"][0] == np.float32(atoms.info["gap"])
        np.testing.assert_allclose(
            batch.conditions["height"][0, : len(expected)], np.tile(atoms.arrays["height"], k * k), rtol=1e-6
        )
        assert not batch.conditions["height"][0, len(expected) :].any()


def test_repeats_join_epoch_by_epoch_and_never_compound(surfaces):
    dataset = create_dataset(surfaces, repeat=3, repeat_epoch=50)
    assert phases(dataset) == {0: 1, 50: 2, 100: 3}
    originals = np.array([0, 2])
    for epoch, rows in [(0, [0, 2]), (49, [0, 2]), (50, [0, 2, 3, 5]), (99, [0, 2, 3, 5])]:
        assert rows_of_epoch(dataset, originals, epoch).tolist() == rows
    for epoch in (100, 1000):
        assert rows_of_epoch(dataset, originals, epoch).tolist() == [0, 2, 3, 5, 6, 8]
    assert phases(create_dataset(surfaces)) == {0: 1}
    assert rows_of_epoch(create_dataset(surfaces), originals, 1000).tolist() == [0, 2]


def test_lengths_are_few_and_fit_closely(surfaces):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 130, 400)
    data = [ase.Atoms(f"H{n}", positions=np.arange(3 * n).reshape(n, 3)) for n in sizes]
    padded = lengths(create_dataset(data))
    assert (padded >= sizes).all()
    assert (padded - sizes <= np.maximum(3, 0.25 * sizes)).all()
    assert len(np.unique(padded)) <= 20
    assert set(padded.tolist()) <= set(sizes.tolist())  # no row is padding in every structure
    assert lengths(create_dataset(surfaces, repeat=2, repeat_epoch=1)).tolist() == [5, 5, 13, 20, 20, 52]


def test_reference_energies_are_least_squares(rng, caplog):
    exact = {1: -13.6, 6: -1030.0, 8: -2040.0}
    data = []
    for name in ("CO", "H2O", "CH4", "CO2", "CH3OH"):
        atoms = molecule(name)
        data.append(labelled(atoms, energy=sum(exact[number] for number in atoms.numbers) + rng.normal() * 0.01))
    found = dict(fit_reference_energies(create_dataset(data)))
    assert found == pytest.approx(exact, abs=0.1)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        one = dict(fit_reference_energies(create_dataset([labelled(molecule("H2O"), energy=-9.0)])))
    assert "apart" in caplog.text
    assert one == pytest.approx({1: -3.6, 8: -1.8})  # the smallest with 2 E_H + E_O = -9
    with pytest.raises(ValueError, match="no structure has one"):
        fit_reference_energies(create_dataset([molecule("H2O")]))


def test_fingerprint_sees_every_label(surfaces):
    base = fingerprint(create_dataset(surfaces, conditioning="gap"))
    assert base == fingerprint(create_dataset(surfaces, conditioning="gap"))
    others = [
        create_dataset(surfaces[::-1], conditioning="gap"),
        create_dataset(surfaces, conditioning="charge"),
        create_dataset(surfaces, conditioning="gap", mask="MaskFixed"),
        create_dataset(surfaces, conditioning="gap", repeat=2, repeat_epoch=3),
        create_dataset(surfaces, conditioning="gap", properties=[{"gap": 1.0}, {}, {}]),
    ]
    assert len({fingerprint(dataset)["crc32"] for dataset in others} | {base["crc32"]}) == 6


def test_canonical_cells_turn_forces_too(rng, caplog):
    atoms = bulk("Cu") * (1, 1, 2)
    atoms.rattle(0.1, rng=rng)
    atoms.calc = EMT()
    labelled(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    dataset = create_dataset([atoms], canonical_cell=True, force_field=True)
    assert "1 structures are turned" in caplog.text
    turned = to_atoms(dataset.graphs[0])
    turned.calc = EMT()
    np.testing.assert_allclose(dataset.forces[0], turned.get_forces(), atol=1e-4)
    assert np.abs(dataset.forces[0] - atoms.get_forces()).max() > 0.05


def test_names_and_kinds():
    assert condition_kinds("none", "scalar") == {}
    assert condition_kinds((), "integer") == {}
    assert condition_kinds("a, b", "integer") == {"a": "integer", "b": "integer"}
    assert condition_kinds(["a", "b"], ["node", "scalar"]) == {"a": "node", "b": "scalar"}


def test_real_data_are_read(data_dir):
    from matterform.io.formats import read_structures, to_atoms

    structures, _ = read_structures(data_dir / "acac_train_300K.extxyz.gz", limit=100)
    dataset = create_dataset(structures, force_field=True, conditioning="energy")
    assert np.isfinite(dataset.energies).all()
    assert set(lengths(dataset)) == {15}
    crystals, _ = read_structures(data_dir / "perov5_val.csv.gz", limit=100)
    atoms = [to_atoms(structure) for structure in crystals]
    dataset = create_dataset(atoms, conditioning="heat_all")
    values = [structure.properties["heat_all"] for structure in crystals]
    np.testing.assert_allclose(dataset.conditions["heat_all"], values, rtol=1e-6)
    assert all(graph.pbc.all() for graph in dataset.graphs)
