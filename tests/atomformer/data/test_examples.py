"""Batches from a data set: padding, targets, references, periodic data, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from ase.io import read

from atomformer.config import AtomformerConfig, EnergyScale
from atomformer.data import examples, references
from atomformer.data.dataset import atom_counts, from_rows
from atomformer.data.examples import Requirements, make_take
from atomformer.data.periodic import image_edges
from atomformer.data.rows import check_row, row_from_atoms
from atomformer.data.vocabulary import PAD
from atomformer.network.transformer import make_apply
from matterform.reduction import minkowski_cell
from matterform.training.batches import bucket_lengths, load_batches, make_batch_plan

pytestmark = pytest.mark.usefixtures("quick")

COUNTS = (4, 2, 7, 1)
CELL = np.array([[3.0, 0.0, 0.0], [7.0, 3.2, 0.0], [0.0, 0.3, 4.0]])  # skewed: its reduced cell is another


def rows(seed=0, **columns):
    """One row for each of `COUNTS`, with forces and all that `columns` adds by row."""
    rng = np.random.default_rng(seed)
    made = []
    for i, count in enumerate(COUNTS):
        row = {
            "input_ids": rng.integers(1, 10, count),
            "coords": rng.normal(0, 2, (count, 3)),
            "forces": rng.normal(size=(count, 3)),
            **{name: values[i] for name, values in columns.items() if values[i] is not None},
        }
        made.append(check_row(row))
    return made


def crystal_rows():
    """The first is a molecule, the others are periodic in three and in two directions."""
    pbc = [None, [True] * 3, [True, True, False], [True] * 3]
    return rows(cell=[None if p is None else CELL for p in pbc], pbc=pbc)


def test_structures_are_padded_on_the_right():
    data, given = from_rows(rows()), rows()
    indices = np.array([2, 1, 3])
    batch = make_take(data, AtomformerConfig(), Requirements(("forces",)))(indices, 9)
    assert batch.structure.tokens.shape == (3, 9)
    assert batch.structure.cell is batch.structure.edges is batch.structure.token_types is None
    np.testing.assert_array_equal(batch.index, indices)
    for row, i in enumerate(indices):
        count = COUNTS[i]
        np.testing.assert_array_equal(batch.structure.mask[row], np.arange(9) < count)
        np.testing.assert_array_equal(batch.structure.tokens[row, :count], given[i]["input_ids"])
        np.testing.assert_array_equal(batch.structure.tokens[row, count:], PAD)
        np.testing.assert_allclose(batch.structure.positions[row, :count], given[i]["coords"], rtol=1e-6)
        np.testing.assert_array_equal(batch.structure.positions[row, count:], 0)
        np.testing.assert_allclose(batch.targets["forces"][row, :count], given[i]["forces"], rtol=1e-6)
        assert np.isnan(batch.targets["forces"][row, count:]).all()
    assert not batch.fixed.any()
    assert {leaf.dtype for leaf in jax.tree.leaves(batch)} <= {np.dtype(name) for name in ("i4", "f4", "?")}


def test_missing_values_are_nan_and_columns_keep_their_order():
    fixed = [np.arange(count) % 2 == 0 for count in COUNTS]
    types = [np.arange(count) % 3 for count in COUNTS]
    columns = {"formation_energy": [1.5, None, -2.0, 0.5], "gap": [1.0, 2.0, None, 4.0], "fixed": fixed}
    data = from_rows(rows(**columns, token_type_ids=types, dipole=[[1.0, 2.0], [3.0, 4.0], None, [7.0, 8.0]]))
    required = Requirements(("formation_energy",), ("dipole", "gap"))
    batch = make_take(data, AtomformerConfig(num_labels=3), required)(np.arange(4), 7)
    np.testing.assert_array_equal(batch.targets["formation_energy"], np.float32([1.5, np.nan, -2, 0.5]))
    labels = [[1, 2, 1], [3, 4, 2], [np.nan] * 3, [7, 8, 4]]
    np.testing.assert_array_equal(batch.targets["labels"], np.float32(labels))
    for i, count in enumerate(COUNTS):
        np.testing.assert_array_equal(batch.fixed[i], np.pad(fixed[i], (0, 7 - count)))
        np.testing.assert_array_equal(batch.structure.token_types[i, :count], types[i])


def test_references_are_subtracted_in_double_precision():
    """Of -9391 eV float32 resolves 1 meV; what is left after the references is known a thousand times better."""
    exact = np.array([-9391.123456789, -9391.123956789, -9390.9, -9400.25])
    references = tuple((number, -1341.6 - 0.0123456789 * number) for number in range(1, 11))
    data = from_rows(rows(total_energy=list(exact)))
    config = AtomformerConfig(heads=("total_energy",), energy=EnergyScale(references=references))
    found = make_take(data, config, Requirements(("total_energy",)))(np.arange(4), 7).targets["total_energy"]
    for i, row in enumerate(rows()):
        left = exact[i] - sum(dict(references)[int(number)] for number in row["input_ids"])
        np.testing.assert_allclose(found[i], left, rtol=1e-7)


def test_energies_of_real_molecules_keep_their_last_digits(data_dir):
    atoms = read(data_dir / "acac_train_300K.extxyz.gz", index=":20")
    isolated = read(data_dir / "acac_isolated_atoms.extxyz", index=":")
    energies = {int(a.numbers[0]): row_from_atoms(a)["total_energy"] for a in isolated}
    given = [row_from_atoms(a) for a in atoms]
    config = AtomformerConfig(heads=("total_energy",), energy=EnergyScale(references=tuple(energies.items())))
    data = from_rows([check_row(row) for row in given])
    found = make_take(data, config, Requirements(("total_energy",)))(np.arange(20), 15).targets["total_energy"]
    exact = [row["total_energy"] - sum(energies[int(number)] for number in row["input_ids"]) for row in given]
    assert min(row["total_energy"] for row in given) < -9000
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
    assert (
        np.abs(np.float32([row["total_energy"] for row in given]) - [row["total_energy"] for row in given]).max() > 1e-4
    )


def test_epochs_serve_every_structure_once():
    data = from_rows(rows())
    counts = atom_counts(data)
    plan = make_batch_plan(counts, 2, bucket_lengths(counts), seed=0)
    take = make_take(data, AtomformerConfig(), Requirements(("forces",)))
    seen = []
    for batch in load_batches(plan, take, 0, plan.batches_per_epoch):
        seen += batch.examples.index[batch.weight > 0].tolist()
        np.testing.assert_array_equal(batch.examples.structure.mask.sum(1), counts[batch.examples.index])
    assert sorted(seen) == [0, 1, 2, 3]


def test_cells_are_reduced_and_molecules_have_none_that_matters():
    data = from_rows(crystal_rows())
    config = AtomformerConfig(periodic="minimum_image")
    structure = make_take(data, config, Requirements())(np.array([1, 0, 2]), 7).structure
    np.testing.assert_array_equal(structure.pbc, [[True] * 3, [False] * 3, [True, True, False]])
    np.testing.assert_array_equal(structure.cell[1], np.eye(3))
    np.testing.assert_allclose(structure.cell[0], minkowski_cell(CELL, np.ones(3, bool)), atol=1e-5)
    assert np.linalg.norm(structure.cell[0], axis=1).max() < 5
    assert structure.edges is None


def test_edges_are_padded_to_the_most_of_a_length():
    data = from_rows(crystal_rows())
    config = AtomformerConfig(periodic="images", cutoff=4.0)
    take = make_take(data, config, Requirements())
    found = [
        take(np.array(indices), length).structure
        for indices, length in [([0, 1, 3], 4), ([0, 1, 3], 7), ([2, 2, 2], 7)]
    ]
    every = []
    for i, row in enumerate(crystal_rows()):
        cell, pbc = data.structures["cell"][i].astype(float), data.structures["pbc"][i]
        every.append(image_edges(row["coords"].astype(np.float32).astype(float), minkowski_cell(cell, pbc), pbc, 4.0))
    numbers = [len(edges.first) for edges in every]
    short, long = max(numbers[0], numbers[1], numbers[3]), max(numbers)
    assert short < long
    assert [structure.edges.mask.shape for structure in found] == [(3, short), (3, long), (3, long)]
    for structure, indices in zip(found, ([0, 1, 3], [0, 1, 3], [2, 2, 2]), strict=True):
        assert structure.edges.mask.sum(1).tolist() == [numbers[i] for i in indices]
    for column in ("first", "second", "shift"):
        np.testing.assert_array_equal(getattr(found[1].edges, column)[1, : numbers[1]], getattr(every[1], column))


@pytest.mark.parametrize("periodic", ["minimum_image", "images"])
def test_batches_of_molecules_and_crystals_go_through_the_network(tiny_config, lively, periodic):
    config = dataclasses.replace(tiny_config, periodic=periodic, cutoff=4.0)
    take = make_take(from_rows(crystal_rows()), config, Requirements())
    apply = jax.jit(jax.vmap(make_apply(config), in_axes=(None, None, 0)))
    params, batch = lively(config), take(np.arange(4), 7).structure
    found = apply(params, None, batch)
    assert np.isfinite(found.hidden).all()
    padded = apply(params, None, take(np.arange(4), 9).structure)
    np.testing.assert_allclose(padded.formation_energy, found.formation_energy, atol=1e-5)
    if periodic == "minimum_image":  # the molecule of the batch is one to a network without periodicity too
        alone = jax.jit(make_apply(tiny_config))(params, None, jax.tree.map(lambda x: x[0], batch))
        np.testing.assert_allclose(found.formation_energy[0], alone.formation_energy, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "required", "message"),
    [
        ({}, (("total_energy",),), "the data have no column 'total_energy'; found cell, coords, forces, .*input_ids"),
        ({}, ((), ("gap",)), "the data have no column 'gap'"),
        ({"num_labels": 3}, ((), ("spin",)), "the label columns spin hold 1 numbers per structure; .*num_labels = 3"),
        ({"num_labels": 3, "problem": "multiclass"}, ((), ("spin", "spin")), "multiclass problem needs 1"),
        ({"vocab_size": 5}, ((),), "the data have the token 9; the network has 5 tokens"),
        (
            {"energy": EnergyScale(references=tuple((number, -1.0) for number in range(1, 9)))},
            (("formation_energy",),),
            "the reference energies lack F; give one for every element",
        ),
        (
            {"num_labels": 2, "problem": "multiclass"},
            ((), ("spin",)),
            "the label columns spin must hold classes 0 to 1; found 2",
        ),
        ({"problem": "binary"}, ((), ("spin",)), "the label columns spin must hold classes 0 to 1; found 2"),
    ],
)
def test_data_that_cannot_be_used_are_refused_in_one_line(config, required, message):
    columns = {"formation_energy": [1.0] * 4, "spin": [0.0, 1.0, 2.0, None]}
    data = from_rows(rows(**columns))
    data.atoms["input_ids"][0] = 9
    with pytest.raises(ValueError, match=message) as error:
        make_take(data, AtomformerConfig(**config), Requirements(*required))
    assert "\n" not in str(error.value)


def test_references_are_not_asked_for_where_no_energy_is_learned():
    config = AtomformerConfig(energy=EnergyScale(references=((1, -13.6),)))
    batch = make_take(from_rows(rows()), config, Requirements(("forces",)))(np.array([0]), 4)
    assert set(batch.targets) == {"forces"}


def test_few_structures_keep_their_edges_in_memory(monkeypatch):
    config, made = AtomformerConfig(periodic="images", cutoff=4.0), from_rows(crystal_rows())
    whole = make_take(made, config, Requirements())(np.arange(4), 7)
    monkeypatch.setattr(examples, "KEPT_PERIODIC", 1)
    take, calls = make_take(made, config, Requirements()), []
    monkeypatch.setattr(examples, "image_edges", lambda *a: calls.append(1) or image_edges(*a))
    jax.tree.map(np.testing.assert_array_equal, take(np.arange(4), 7), whole)
    assert len(calls) == 8  # once to count the edges, once to have them
    take(np.arange(4), 7)
    assert len(calls) == 12


def test_references_are_fitted_piece_by_piece(monkeypatch):
    energies = [-4.0, np.nan, -2.5, 7.0]
    data = from_rows(rows(total_energy=energies))
    forces = np.concatenate([row["forces"] for row in rows()])
    whole = references.fit_energy_scale(data, "total_energy", False)
    assert whole.scale == pytest.approx(np.sqrt(np.mean(forces**2)), rel=1e-6)
    monkeypatch.setattr(references, "STRUCTURES_AT_ONCE", 3)
    assert references.fit_energy_scale(data, "total_energy", False) == whole
    numbers = np.unique(data.atoms["input_ids"])
    found = references.composition(data, numbers)
    assert found.tolist() == [[int((row["input_ids"] == z).sum()) for z in numbers] for row in rows()]
