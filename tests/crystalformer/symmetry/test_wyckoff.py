import pathlib
import runpy

import gemmi
import numpy as np
import pytest
from pyxtal.symmetry import Group

from crystalformer.symmetry import wyckoff as spacegroups
from crystalformer.symmetry.wyckoff import general_operations, letter_index, symmetry_tables, wyckoff_operations


def test_shipped_file_is_what_the_generator_builds():
    script = pathlib.Path(spacegroups.__file__).parents[1] / "assets" / "make_spacegroups.py"
    built = runpy.run_path(str(script))["build_tables"]()
    with np.load(spacegroups.SPACEGROUPS_NPZ) as shipped:
        assert set(shipped) == set(built)
        for name, table in built.items():
            np.testing.assert_array_equal(shipped[name], table, err_msg=name)


def test_tables_equal_the_published_ones(golden_dir):
    tables = symmetry_tables()
    with np.load(golden_dir / "crystalformer" / "wyckoff_tables.npz") as golden:
        np.testing.assert_array_equal(tables.multiplicity, golden["mult"])
        np.testing.assert_array_equal(tables.num_letters, golden["wmax"])
        np.testing.assert_array_equal(tables.first_op, golden["first_op"])
        np.testing.assert_array_equal(tables.has_no_freedom, golden["dof0"])
        np.testing.assert_array_equal(tables.free_coordinate, golden["fc_mask"])


@pytest.mark.parametrize("G", [1, 15, 47, 62, 166, 194, 216, 227, 230])
def test_operations_are_those_of_pyxtal_in_its_order(G):
    positions = Group(G).Wyckoff_positions[::-1]
    assert symmetry_tables().num_letters[G - 1] == len(positions)
    for W, position in enumerate(positions, start=1):
        assert letter_index(position.letter) == W
        expected = np.stack([operation.affine_matrix[:3] for operation in position.ops])
        np.testing.assert_allclose(wyckoff_operations(G, W), expected, atol=1e-12)


def test_general_positions_are_the_standard_settings_of_gemmi():
    """An independent source: origin choice 2 and hexagonal axes are gemmi's reference settings too."""
    for G in range(1, 231):
        operations = gemmi.get_spacegroup_reference_setting(G).operations()
        expected = {(*np.ravel(op.rot).tolist(), *(t % 24 for t in op.tran)) for op in operations}
        ours = 24 * general_operations(G)
        found = {
            (*op[:, :3].ravel().astype(int).tolist(), *(op[:, 3].round().astype(int) % 24).tolist()) for op in ours
        }
        assert found == expected, G


def test_every_orbit_has_as_many_points_as_its_multiplicity(rng):
    for G in range(1, 231):
        for W in range(1, symmetry_tables().num_letters[G - 1] + 1):
            operations = wyckoff_operations(G, W)
            orbit = (operations[:, :, :3] @ rng.random(3) + operations[:, :, 3]) % 1.0 % 1.0
            assert len(np.unique(orbit.round(8) % 1.0, axis=0)) == len(operations), (G, W)


@pytest.mark.parametrize(("G", "W", "message"), [(0, 1, "G: "), (231, 1, "G: "), (225, 0, "W: "), (225, 13, "W: ")])
def test_unknown_positions_are_refused(G, W, message):
    with pytest.raises(ValueError, match=message):
        wyckoff_operations(G, W)


@pytest.mark.parametrize("letter", ["-", "B", "", "ab", "é"])
def test_unknown_letters_are_refused(letter):
    with pytest.raises(ValueError, match="letter"):
        letter_index(letter)
