"""The compact form of reference entries: grouped, found again, kept in a folder."""

import json
import shutil

import numpy as np
import pytest
from pymatgen.core import Composition

import matterform.stability.hull_entries
from matterform.stability.hull_entries import Entry, fractions_of, open_entries, pack_entries, save_entries, select

FORMULAS = ["Na", "Cl2", "NaCl", "Na4Cl4", "Na3Cl", "KCl", "NaKCl2", "O2", "NaClO", "LiFePO4"]


def packed(kind="total"):
    entries = ((fractions_of(Composition(formula)), -float(index)) for index, formula in enumerate(FORMULAS))
    return pack_entries(kind, (Entry(*entry) for entry in entries))


def system_of(*symbols):
    return fractions_of(Composition(dict.fromkeys(symbols, 1))).system


def test_entries_of_all_subsystems_are_found_lowest_only():
    entries = packed()
    assert len(entries.energies) == len(FORMULAS) - 1
    fractions, energies = select(entries, system_of("Na", "Cl"))
    found = sorted(zip(energies.tolist(), fractions.tolist(), strict=True))
    assert found == [(-4.0, [0.75, 0.25]), (-3.0, [0.5, 0.5]), (-1.0, [0.0, 1.0]), (-0.0, [1.0, 0.0])]


@pytest.mark.parametrize("limit", [0, 12])
def test_many_elements_are_searched_otherwise_with_the_same_result(monkeypatch, limit):
    monkeypatch.setattr(matterform.stability.hull_entries, "MAX_ENUMERATED", limit)
    fractions, energies = select(packed(), system_of("Na", "Cl", "O", "K"))
    assert sorted(energies.tolist()) == [-8, -7, -6, -5, -4, -3, -1, 0]
    np.testing.assert_allclose(fractions.sum(1), 1)
    # Columns are O, Na, Cl, K; NaKCl2 has the energy -6.
    np.testing.assert_allclose(fractions[energies == -6], [[0, 0.25, 0.5, 0.25]])


def test_an_unknown_system_has_no_entries():
    fractions, energies = select(packed(), system_of("Xe", "F"))
    assert fractions.shape == (0, 2)
    assert energies.shape == (0,)


def test_formation_energies_come_with_elements_at_zero():
    fractions, energies = select(packed("formation"), system_of("Li", "P"))
    assert energies.tolist() == [0, 0]
    assert sorted(map(tuple, fractions.tolist())) == [(0, 1), (1, 0)]


def test_a_saved_folder_is_mapped_not_read(tmp_path):
    save_entries(packed(), tmp_path / "hull", "made-up")
    opened = open_entries(tmp_path / "hull")
    for name in ("systems", "energies", "fractions", "entry_start", "fraction_start"):
        assert isinstance(getattr(opened, name).base, np.memmap)
        np.testing.assert_array_equal(getattr(opened, name), getattr(packed(), name))
    assert (opened.kind, opened.count) == ("total", len(FORMULAS))
    assert json.loads((tmp_path / "hull" / "info.json").read_text())["source"] == "made-up"


def test_damaged_folders_are_named(tmp_path):
    folder = tmp_path / "hull"
    save_entries(packed(), folder, "made-up")

    def damaged(name, content):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"index the hull again|not an indexed hull") as error:
            open_entries(copy)
        assert name in str(error.value)

    damaged("info.json", None)
    damaged("info.json", b"{")
    damaged("info.json", b'{"format": 0, "kind": "total"}')
    damaged("energies.npy", b"")
    damaged("energies.npy", None)
    damaged("systems.npy", (folder / "systems.npy").read_bytes()[:-3])
    np.save(tmp_path / "short.npy", np.zeros(3))
    damaged("entry_start.npy", (tmp_path / "short.npy").read_bytes())


def test_pickled_arrays_are_never_loaded(tmp_path):
    save_entries(packed(), tmp_path / "hull", "made-up")
    np.save(tmp_path / "hull" / "energies.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"energies.npy is missing or damaged"):
        open_entries(tmp_path / "hull")
