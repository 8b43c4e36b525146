"""Reading structures for commands, and writing results as they come."""

import ase
import ase.io
import pytest

from agedi.cli.structures import read_all, read_one, write_by_structure, write_results
from matterform.commandline import Interrupted


def test_a_single_structure_is_required(tmp_path):
    ase.io.write(tmp_path / "two.xyz", [ase.Atoms("H"), ase.Atoms("He")])
    assert [atoms.get_chemical_formula() for atoms in read_all(tmp_path / "two.xyz")] == ["H", "He"]
    with pytest.raises(ValueError, match="holds 2 structures, but one is expected"):
        read_one(tmp_path / "two.xyz")
    (tmp_path / "empty.xyz").write_text("")
    with pytest.raises(ValueError, match="holds no structure"):
        read_all(tmp_path / "empty.xyz")


def test_results_are_readable_while_others_are_missing(tmp_path, capsys):
    def results():
        yield [ase.Atoms("H"), ase.Atoms("He")]
        assert len(ase.io.read(tmp_path / "out" / "some.traj", ":")) == 1
        yield [ase.Atoms("Li")]

    write_results(tmp_path / "out", "some", results(), False, 2)
    written = ase.io.read(tmp_path / "out" / "some.traj", ":")
    assert [atoms.get_chemical_formula() for atoms in written] == ["He", "Li"]
    assert capsys.readouterr().out == f"2 structures in {tmp_path / 'out' / 'some.traj'}\n"


def test_trajectories_are_files_of_their_own(tmp_path):
    write_results(tmp_path, "way", iter([[ase.Atoms("H")] * 3, [ase.Atoms("H")] * 2]), True, 2)
    assert [len(ase.io.read(tmp_path / f"way_{i}.traj", ":")) for i in range(2)] == [3, 2]


def test_an_interrupt_says_what_is_there(tmp_path):
    def results():
        yield [ase.Atoms("H")]
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"^1 structure of 5 are in .*some\.traj"):
        write_results(tmp_path, "some", results(), False, 5)
    assert len(ase.io.read(tmp_path / "some.traj", ":")) == 1


def test_several_structures_have_a_file_each(tmp_path):
    results = iter([[ase.Atoms(symbol)] for symbol in ("H", "He", "Li", "Be")])
    write_by_structure(tmp_path, "new", results, False, [2, 2])
    for number, expected in enumerate((["H", "He"], ["Li", "Be"])):
        written = ase.io.read(tmp_path / f"new_struct{number}.traj", ":")
        assert [atoms.get_chemical_formula() for atoms in written] == expected
