"""Pairs from two files and from one scored table; which rows give none, and why."""

import csv
import functools
import json
import re

import jax
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry

from crystalformer.data.crystals import Crystals
from crystalformer.data.dataset import prepare
from crystalformer.loss import LogProb
from crystalformer.rl.config import PairingConfig
from crystalformer.rl.dpo.pairs import best_against_worst, group_keys, pairs_from_scores, read_pairs
from crystalformer.rl.dpo.rows import read_crystal_rows, take_crystals
from crystalformer.table import COLUMNS, TableWriter, table_rows
from matterform.cli import main as matterform

N_MAX = 6
ROCK_SALT, CESIUM_CHLORIDE = ("Fm-3m", 5.6), ("Pm-3m", 4.1)  # both with atoms at 0 and at 1/2


@functools.cache
def salt(cation: str, anion: str, kind: tuple[str, float] = ROCK_SALT) -> str:
    group, edge = kind
    structure = Structure.from_spacegroup(group, Lattice.cubic(edge), [cation, anion], [[0] * 3, [0.5] * 3])
    return structure.to(fmt="cif")


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


def write_table(path, crystals, indices, columns=COLUMNS, **more):
    """A table as `sample` writes it, with the best log-probability, that of the last crystal, first."""
    logp = np.arange(len(crystals.G), dtype=np.float32)
    rows = table_rows(crystals, LogProb(logp, *np.zeros((3, len(logp)), np.float32)), indices)
    writer = TableWriter(path, columns)
    writer.write({**row, **{name: values[i] for name, values in more.items()}} for i, row in enumerate(rows))
    writer.finish()
    return path


def assert_same_crystals(found: Crystals, expected: Crystals) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(1, 0), (3, 2), (8, 7)]),
        ({"score_margin": 1.0}, [(1, 0), (3, 2)]),
        ({"score_margin": 1.5}, [(1, 0)]),
        ({"pairs_per_group": 1}, [(1, 0), (8, 7)]),
        ({"lower_is_better": True}, [(0, 1), (2, 3), (7, 8)]),
    ],
)
def test_the_best_of_a_group_is_paired_with_its_worst(options, expected):
    # Group x has the scores 1, 4, 2, 3; y has two equal ones; z is alone; t has three, whose middle one stays single.
    groups = ["x", "x", "x", "x", "y", "y", "z", "t", "t", "t"]
    scores = np.array([1.0, 4.0, 2.0, 3.0, 5.0, 5.0, 9.0, -0.5, 0.25, 0.0])
    assert best_against_worst(groups, scores, PairingConfig(**options)).tolist() == [list(pair) for pair in expected]


def test_of_equal_scores_the_earlier_row_is_the_better():
    pairs = best_against_worst([0, 0, 0, 0], np.array([1.0, 1.0, 0.0, 0.0]), PairingConfig())
    assert pairs.tolist() == [[0, 3], [1, 2]]


def test_groups_are_reduced_formulas_or_space_groups(tmp_path):
    rows = [{"cif": salt(*names)} for names in (("Na", "Cl"), ("Na", "Cl", CESIUM_CHLORIDE), ("Cl", "Na"), ("K", "Cl"))]
    crystals = read_crystal_rows(write_csv(tmp_path / "salts.csv", rows), n_max=N_MAX).crystals
    assert crystals.G.tolist() == [225, 221, 225, 225]
    sodium_chloride, potassium_chloride = ((11, 1), (17, 1)), ((17, 1), (19, 1))
    assert group_keys(crystals, "formula") == [*[sodium_chloride] * 3, potassium_chloride]
    assert group_keys(crystals, "spacegroup") == [225, 221, 225, 225]


def test_tables_of_samples_are_paired_by_their_index(tmp_path, random_crystals):
    chosen, rejected = random_crystals(4, N_MAX, seed=1), random_crystals(3, N_MAX, seed=2)
    first = write_table(tmp_path / "chosen.csv", chosen, [10, 11, 12, 13])
    second = write_table(tmp_path / "rejected.csv", rejected, [12, 10, 99])
    pairs, rows, refused = read_pairs(first, second, n_max=N_MAX)
    assert rows.tolist() == [[10, 10], [12, 12]]
    for found, expected in (
        (pairs.chosen, take_crystals(chosen, [0, 2])),
        (pairs.rejected, take_crystals(rejected, [1, 0])),
    ):
        for name in ("G", "A", "W"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert refused == dict.fromkeys([11, 13, 99], "the other file lacks it")


def test_a_chosen_crystal_needs_a_possible_cell_and_a_rejected_one_does_not(tmp_path, random_crystals):
    crystals = random_crystals(2, N_MAX)._replace(G=np.array([1, 1], np.int32))
    crystals = crystals._replace(W=np.minimum(crystals.W, 1), L=np.array([[1, 1, 1, 1.5, 1.5, 1.5]] * 2, np.float32))
    crystals.L[0, 0] = -1.0
    good = write_table(tmp_path / "good.csv", crystals._replace(L=np.abs(crystals.L)), [0, 1])
    bad = write_table(tmp_path / "bad.csv", crystals, [0, 1])
    assert read_pairs(good, bad, n_max=N_MAX).refused == {}
    pairs, rows, refused = read_pairs(bad, good, n_max=N_MAX)
    assert rows.tolist() == [[1, 1]]
    assert len(pairs.chosen.G) == 1
    assert list(refused) == [0]
    assert re.fullmatch(r"chosen: a cell length is not positive: -\S+ angstrom", refused[0])


@pytest.fixture
def salts(tmp_path):
    """Two CSVs of five rows, of which the second of one and the fourth of the other hold no crystal."""
    anions = ("F", "Cl", "Br", "I", "O")
    chosen = [{"material_id": f"a{i}", "cif": salt("Na", anion)} for i, anion in enumerate(anions)]
    rejected = [{"material_id": f"b{i}", "cif": salt("K", anion)} for i, anion in enumerate(anions)]
    chosen[1]["cif"] = rejected[3]["cif"] = "data_nothing"
    return write_csv(tmp_path / "chosen.csv", chosen), write_csv(tmp_path / "rejected.csv", rejected)


def test_files_of_cifs_are_paired_row_by_row_and_their_refused_rows_named(salts):
    pairs, rows, refused = read_pairs(*salts, n_max=N_MAX)
    assert rows.tolist() == [[0, 0], [2, 2], [4, 4]]
    assert pairs.chosen.A[:, :2].tolist() == [[11, 9], [11, 35], [11, 8]]
    assert pairs.rejected.A[:, :2].tolist() == [[19, 9], [19, 35], [19, 8]]
    assert pairs.chosen.W.shape == pairs.rejected.W.shape == (3, N_MAX)
    assert refused[1].startswith("chosen: ")
    assert refused[3].startswith("rejected: ")
    assert sorted(refused) == [1, 3]


def test_a_prepared_folder_and_a_folder_of_cifs_give_the_pairs_of_the_csv(salts, tmp_path):
    expected = read_pairs(*salts, n_max=N_MAX)
    prepare(salts[0], tmp_path / "prepared", n_max=4)
    folder = tmp_path / "cifs"
    folder.mkdir()
    with salts[1].open(newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            (folder / f"{i}.cif").write_text(row["cif"])
    found = read_pairs(tmp_path / "prepared", folder, n_max=N_MAX)
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.refused.keys() == expected.refused.keys()
    assert_same_crystals(found.pairs.chosen, expected.pairs.chosen)
    assert_same_crystals(found.pairs.rejected, expected.pairs.rejected)


@pytest.fixture
def scored(tmp_path):
    """Rows 0 to 3 are NaCl with e_above_hull 0.3, 0, nothing and 0.1 eV/atom; row 4 is KCl."""
    values = ("0.3", "0.0", "", "0.1", "0.2")
    kinds = (ROCK_SALT, CESIUM_CHLORIDE, ROCK_SALT, ("Fm-3m", 6.0), ROCK_SALT)
    cations = ("Na", "Na", "Na", "Na", "K")
    rows = [
        {"e_above_hull": value, "cif": salt(cation, "Cl", kind)}
        for value, kind, cation in zip(values, kinds, cations, strict=True)
    ]
    return write_csv(tmp_path / "scored.csv", rows)


HULL = PairingConfig(score="e_above_hull", lower_is_better=True)


def test_a_scored_table_gives_pairs_of_the_same_formula(scored):
    pairs, rows, refused = pairs_from_scores(scored, HULL, n_max=N_MAX)
    assert rows.tolist() == [[1, 0]]
    assert pairs.chosen.G.tolist() == [221]
    assert pairs.rejected.G.tolist() == [225]
    assert refused == {2: "its e_above_hull is not a number"}


def test_a_scored_table_gives_pairs_of_the_same_space_group(scored):
    config = PairingConfig(score="e_above_hull", lower_is_better=True, group_by="spacegroup")
    assert pairs_from_scores(scored, config, n_max=N_MAX).rows.tolist() == [[3, 0]]


def test_a_prepared_folder_keeps_the_scores(scored, tmp_path):
    prepare(scored, tmp_path / "prepared", n_max=4)
    expected, found = (pairs_from_scores(path, HULL, n_max=N_MAX) for path in (scored, tmp_path / "prepared"))
    assert found.rows.tolist() == expected.rows.tolist()
    assert_same_crystals(found.pairs.chosen, expected.pairs.chosen)


def test_scores_of_a_table_of_samples_follow_its_index(tmp_path, random_crystals):
    one = random_crystals(1, N_MAX)
    same = take_crystals(one, [0, 0, 0])._replace(
        L=np.array([[2], [3], [4]], np.float32) * np.ones((1, 6), np.float32) / 2
    )
    # In the file the order is reversed, because the last one is the likeliest.
    path = write_table(tmp_path / "table.csv", same, [7, 8, 9], (*COLUMNS, "score"), score=[0.5, 0.1, 0.9])
    pairs, rows, refused = pairs_from_scores(path, PairingConfig(score="score"), n_max=N_MAX)
    assert rows.tolist() == [[9, 8]]
    assert refused == {}
    np.testing.assert_allclose([pairs.chosen.L[0, 0], pairs.rejected.L[0, 0]], [2.0, 1.5], atol=2e-6)


@pytest.mark.parametrize("relax_steps", [0, 2])
def test_a_table_of_energies_above_the_hull_gives_pairs(tmp_path, relax_steps):
    (tmp_path / "hull.json").write_text(json.dumps({"entries": [ComputedEntry("Cu", 0.0).as_dict()]}))
    metals = [Structure.from_spacegroup("Fm-3m", Lattice.cubic(edge), ["Cu"], [[0] * 3]) for edge in (3.9, 3.6, 3.8)]
    rows = [{"cif": cif} for cif in (metals[0].to(fmt="cif"), salt("Na", "F"), "data_broken")]  # EMT knows no salts
    path = write_csv(tmp_path / "crystals.csv", [*rows, *({"cif": metal.to(fmt="cif")} for metal in metals[1:])])
    emt = ["--mlff-model=ase", "--mlff-variant=ase.calculators.emt:EMT", "--mlff-corrected=True"]
    arguments = [f"--hull={tmp_path / 'hull.json'}", f"--out={tmp_path / 'scored.csv'}", f"--relax-steps={relax_steps}"]
    assert matterform(["above-hull", str(path), *arguments, *emt]) == 0
    for group_by in ("formula", "spacegroup"):
        config = PairingConfig(score="e_above_hull", lower_is_better=True, group_by=group_by)
        pairs, rows, refused = pairs_from_scores(tmp_path / "scored.csv", config, n_max=N_MAX)
        assert rows.tolist() == [[3, 0]]
        assert pairs.chosen.G.tolist() == pairs.rejected.G.tolist() == [225]
        assert refused == dict.fromkeys([1, 2], "its e_above_hull is not a number")


def test_unequal_numbers_of_rows_are_refused(salts, scored, tmp_path):
    short = write_csv(tmp_path / "short.csv", [{"cif": salt("Na", "F")}])
    with pytest.raises(ValueError, match=r"chosen\.csv has 5 rows and .*short\.csv has 1, but row i"):
        read_pairs(salts[0], short)


def test_files_without_a_pair_are_refused(tmp_path, random_crystals):
    paths = [write_table(tmp_path / f"{i}.csv", random_crystals(2, N_MAX), [2 * i, 2 * i + 1]) for i in range(2)]
    with pytest.raises(ValueError, match="give no pair; 4 rows were refused, the first is row 0: the other file lacks"):
        read_pairs(*paths, n_max=N_MAX)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PairingConfig(score="energy"), r"no column 'energy'; its columns are e_above_hull, cif"),
        (PairingConfig(), "the name of the column of scores is missing"),
        (
            PairingConfig(score="e_above_hull", score_margin=0.5),
            "gives no pair: of its 4 crystals with e_above_hull, no two of one formula differ by 0.5 or more; 1 rows",
        ),
    ],
)
def test_a_table_without_the_scores_or_without_a_pair_is_refused(scored, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        pairs_from_scores(scored, config, n_max=N_MAX)
    assert "\n" not in str(caught.value)


def test_a_missing_column_of_a_prepared_folder_and_a_file_without_columns_are_refused(scored, tmp_path):
    prepare(scored, tmp_path / "prepared", n_max=4)
    with pytest.raises(ValueError, match="no column 'energy' of numbers; it has e_above_hull"):
        pairs_from_scores(tmp_path / "prepared", PairingConfig(score="energy"))
    (tmp_path / "one.cif").write_text(salt("Na", "Cl"))
    with pytest.raises(ValueError, match=r"one\.cif has no columns; expected a CSV"):
        pairs_from_scores(tmp_path / "one.cif", PairingConfig(score="energy"))


def test_an_index_that_occurs_twice_is_refused(tmp_path, random_crystals):
    path = write_table(tmp_path / "table.csv", random_crystals(2, N_MAX), [3, 3])
    with pytest.raises(ValueError, match="index must name each row by another whole number"):
        read_pairs(path, path, n_max=N_MAX)


def test_a_prepared_folder_of_longer_crystals_is_refused(tmp_path, scored):
    prepare(scored, tmp_path / "prepared", n_max=4)
    with pytest.raises(ValueError, match="needs n_max of at least 3; the network has 2"):
        read_crystal_rows(tmp_path / "prepared", n_max=2)


@pytest.mark.parametrize(
    ("name", "value"), [("score_margin", -1.0), ("score_margin", float("nan")), ("pairs_per_group", 0)]
)
def test_an_impossible_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        PairingConfig(**{name: value})
