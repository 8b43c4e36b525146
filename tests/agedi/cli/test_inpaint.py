"""`agedi inpaint`."""

import ase.io
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("quick")


def test_inpainting_keeps_the_rest(run_dir, structure, command, tmp_path, labelled):
    status, out, _ = command("inpaint", run_dir, structure, "--indices", -1, "-n", 2, "--steps", 4)
    assert (status, out) == (0, f"2 structures in {tmp_path / 'inpainted.traj'}\n")
    for atoms in ase.io.read(tmp_path / "inpainted.traj", ":"):
        np.testing.assert_array_equal(atoms.positions[:3], labelled(9).positions[:3])
        assert np.abs(atoms.positions[3] - labelled(9).positions[3]).max() > 1e-3
        assert atoms.info["inpainted"].tolist() == [3]
    ase.io.write(tmp_path / "two.xyz", [labelled(1), labelled(2)])
    status, _, _ = command("inpaint", run_dir, tmp_path / "two.xyz", "--symbols", "Cu", "--freeze", 0, 1,
                           "-n", 2, "--steps", 4)  # fmt: skip
    assert status == 0
    for number in range(2):
        atoms = ase.io.read(tmp_path / f"inpainted_struct{number}.traj", ":")
        assert len(atoms) == 2
        np.testing.assert_allclose(atoms[1].positions[:2], labelled(number + 1).positions[:2], atol=1e-7)


def test_wrong_selections_are_refused(run_dir, command, tmp_path, labelled):
    ase.io.write(tmp_path / "two.xyz", [labelled(1), labelled(2)])
    for arguments, words in (
        (("--indices", "4"), "structure 0 (Cu4): indices must be whole"),
        (("--sphere-radius", "4"), "a sphere needs --sphere-center and"),
        (("--freeze", "some"), "--freeze"),
    ):
        status, _, err = command("inpaint", run_dir, tmp_path / "two.xyz", *arguments)
        assert status == 2, arguments
        assert words in err, arguments
        assert err.count("\n") == 1, arguments
