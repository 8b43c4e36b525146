"""ODAC23 (Sriram et al. 2023, arXiv:2311.00341): CO2 and H2O in metal-organic frameworks.

Formats are extxyz (.xz, .gz or plain; frames with energy, forces and in `info` the name of the framework, numbers of
adsorbates, ...) and the newer LMDBs of ASE rows (.aselmdb). The first LMDBs contain pickles of PyTorch Geometric, which
are not read because they can run code.
"""

import functools
import os
from collections.abc import Iterator

from atomformer.data.converters.reading import Entry, Frame, iterate_frames, list_files, read_entries
from atomformer.data.rows import Row, row_from_atoms
from atomformer.data.sources import ReadRow

# Keys of these energies (eV) in `info`.
ADSORPTION = ("adsorption_energy", "ads_energy", "ads_energy_ev")
REFERENCE = ("reference_energy", "ref_energy")


def iterate_rows(path: str | os.PathLike[str], *, energy: str = "total") -> Iterator[ReadRow]:
    """The frames of a file or of a folder (with sub-folders), file by file in numerical order.

    `formation_energy` is the adsorption energy (eV): the one in `info` (`adsorption_energy`, `ads_energy`,
    `ads_energy_ev`), or the total less a `reference_energy` there (framework and free molecules); missing where neither
    is. Tags are `token_type_ids`. Numbers and text in `info` are kept as properties.

    Args:
        energy: meaning of the energy of a frame, "total" or "adsorption". The sets made for training contain
            adsorption energies, which become formation energies; the total energy is then missing.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: an unknown kind of energy, no readable files, pickles, or damage beyond a single frame.
    """
    if energy not in ("total", "adsorption"):
        raise ValueError(f"energy: expected 'total' or 'adsorption', found {energy!r}")
    return read_entries(path, _iterate_entries(path, energy))


def _iterate_entries(path: str | os.PathLike[str], energy: str) -> Iterator[Entry]:
    for file in list_files(path, (".extxyz", ".aselmdb", ".lmdb")):
        yield from (functools.partial(_read_row, frame, energy) for frame in iterate_frames(file))


def _read_row(frame: Frame, energy: str) -> Row:
    atoms = frame()
    row = row_from_atoms(atoms, properties={"token_type_ids": atoms.get_tags()} if atoms.has("tags") else {})
    if energy == "adsorption":
        row["formation_energy"] = row.pop("total_energy", None)
        return row
    adsorption = next((row[name] for name in ADSORPTION if name in row), None)
    reference = next((row[name] for name in REFERENCE if name in row), None)
    if adsorption is None and reference is not None and "total_energy" in row:
        adsorption = row["total_energy"] - reference
    if adsorption is not None:
        row["formation_energy"] = adsorption
    return row
