"""What a data set reads of its structures, how it repeats and cuts them, and what it refuses."""

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedPlane

from agedi.data.dataset import create_dataset, fingerprint, padded_lengths, phases, with_copies
from agedi.data.graph import to_atoms


def labelled(atoms, **results):
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


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
    assert with_copies(dataset, np.array([0, 2]), 2).tolist() == [0, 2, 3]


def test_repeats_join_epoch_by_epoch_and_never_compound(surfaces):
    dataset = create_dataset(surfaces, repeat=3, repeat_epoch=50)
    assert phases(dataset) == {0: 1, 50: 2, 100: 3}
    originals = np.array([0, 2])
    for repeats, rows in [(1, [0, 2]), (2, [0, 2, 3, 5]), (3, [0, 2, 3, 5, 6, 8])]:
        assert with_copies(dataset, originals, repeats).tolist() == rows
    assert phases(create_dataset(surfaces)) == {0: 1}


def test_lengths_are_few_and_fit_closely(surfaces):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 130, 400)
    data = [ase.Atoms(f"H{n}", positions=np.arange(3 * n).reshape(n, 3)) for n in sizes]
    padded = padded_lengths(create_dataset(data))
    assert (padded >= sizes).all()
    assert (padded - sizes <= np.maximum(3, 0.25 * sizes)).all()
    assert len(np.unique(padded)) <= 20
    assert set(padded.tolist()) <= set(sizes.tolist())  # no row is padding in every structure
    assert padded_lengths(create_dataset(surfaces, repeat=2, repeat_epoch=1)).tolist() == [5, 5, 13, 20, 20, 52]


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
    assert "1 structures are rotated" in caplog.text
    turned = to_atoms(dataset.graphs[0])
    turned.calc = EMT()
    np.testing.assert_allclose(dataset.forces[0], turned.get_forces(), atol=1e-4)
    assert np.abs(dataset.forces[0] - atoms.get_forces()).max() > 0.05


def test_real_data_are_read(data_dir):
    from matterform.io.formats import read_structures, to_atoms

    structures, _ = read_structures(data_dir / "acac_train_300K.extxyz.gz", limit=100)
    dataset = create_dataset(structures, force_field=True, conditioning="energy")
    assert np.isfinite(dataset.energies).all()
    assert set(padded_lengths(dataset)) == {15}
    crystals, _ = read_structures(data_dir / "perov5_val.csv.gz", limit=100)
    atoms = [to_atoms(structure) for structure in crystals]
    dataset = create_dataset(atoms, conditioning="heat_all")
    values = [structure.properties["heat_all"] for structure in crystals]
    np.testing.assert_allclose(dataset.conditions["heat_all"], values, rtol=1e-6)
    assert all(graph.pbc.all() for graph in dataset.graphs)
