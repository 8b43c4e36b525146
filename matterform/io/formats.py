"""Structures in files: CIF, CSV with a CIF or structure column, extended XYZ, ASE trajectories and LMDB.

Crystals (CIF, CSV) are pymatgen Structures, molecules and trajectories (XYZ, traj, LMDB) ASE Atoms; `to_atoms` and
`to_structure` convert. Energies (eV) and forces (eV/Å) of Atoms are in their calculator, everything else in `info`.
An unreadable entry is returned with its number and the reason, and the entries after it are read.
Deuterium and tritium, written D and T, are read as hydrogen.
"""

import io
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Union

from matterform.errors import reason_of
from matterform.io.cif import (
    TextRecord,
    UnreadableStructure,
    iterate_cifs,
    iterate_csv,
    parse_structure,
    to_cif,
)
from matterform.io.files import damage_explained, existing, is_compressed, open_text, write_atomically
from matterform.io.tables import write_table

if TYPE_CHECKING:
    import ase
    import pymatgen.core

__all__ = [
    "Record",
    "TextRecord",
    "UnreadableStructure",
    "iterate_cifs",
    "iterate_csv",
    "iterate_records",
    "iterate_texts",
    "parse_structure",
    "read_structures",
    "to_atoms",
    "to_cif",
    "to_structure",
    "write_structures",
]

AnyStructure = Union["ase.Atoms", "pymatgen.core.Structure"]

KINDS = {
    ".cif": "cif",
    ".csv": "csv",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".traj": "traj",
    ".lmdb": "lmdb",
    ".aselmdb": "lmdb",
}
COMPRESSIBLE = ("cif", "csv", "extxyz")  # the others need random access, which gzip does not allow


class Record(NamedTuple):
    """One entry of a file: a structure, or the reason why it cannot be read."""

    index: int  # row, data block or frame, counted from 0
    structure: AnyStructure | None
    reason: str = ""  # empty where there is a structure


class CrystalRecord(NamedTuple):
    """One entry of a file as a pymatgen structure, or the reason why it cannot be read."""

    index: int
    structure: "pymatgen.core.Structure | None"
    reason: str = ""  # empty where there is a structure


def read_structures(
    path: str | os.PathLike[str], *, limit: int | None = None
) -> tuple[list[AnyStructure], dict[int, str]]:
    """Reads the first `limit` entries of a file (or folder of CIFs); also returns {index: reason} for unreadable ones.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: as for `iterate_records`.
    """
    structures, refused = [], {}
    for record in itertools.islice(iterate_records(path), limit):
        if record.structure is None:
            refused[record.index] = record.reason
        else:
            structures.append(record.structure)
    return structures, refused


def iterate_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Reads a file (or a folder of CIFs) entry by entry; the memory does not depend on the size of the file.

    Other columns of a CSV, and file and block names of a CIF, become `Structure.properties`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the suffix is unknown, a structure column is missing, the file has no entry, or is damaged so that
            entries cannot be separated.
    """
    path = existing(path)
    readers = {"cif": _read_texts, "csv": _read_texts, "extxyz": _read_xyz, "traj": _read_traj, "lmdb": _read_lmdb}
    count = 0
    for record in readers[_kind(path)](path):
        count += 1
        yield record
    if count == 0:
        raise ValueError(f"{path} holds no structures")


def iterate_crystals(path: str | os.PathLike[str]) -> Iterator[CrystalRecord]:
    """`iterate_records` with pymatgen structures; entries that are not crystals, e.g. molecules, get a reason instead.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: as for `iterate_records`.
    """
    for record in iterate_records(path):
        if record.structure is None:
            yield CrystalRecord(record.index, None, record.reason)
            continue
        try:
            yield CrystalRecord(record.index, to_structure(record.structure))
        except ValueError as error:  # e.g. a molecule, which has no cell
            yield CrystalRecord(record.index, None, str(error))


def iterate_texts(path: str | os.PathLike[str]) -> Iterator[TextRecord]:
    """Yields the crystals of a CSV, a CIF or a folder of CIFs as text, to be parsed in worker processes.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file has another format, or is damaged.
    """
    kind = _kind(existing(path))
    if kind not in ("cif", "csv"):
        raise ValueError(f"{path} does not hold crystals as text: expected a CSV, a CIF or a folder of CIFs")
    return iterate_csv(path) if kind == "csv" else iterate_cifs(path)


def to_atoms(structure: AnyStructure) -> "ase.Atoms":
    """Converts a structure to ASE Atoms; `properties` become `info`.

    Raises:
        ValueError: the structure has partial occupancy.
    """
    import ase
    from pymatgen.io.ase import AseAtomsAdaptor

    if isinstance(structure, ase.Atoms):
        return structure
    return AseAtomsAdaptor.get_atoms(structure, msonable=False)  # pyright: ignore[reportReturnType]


def to_structure(structure: AnyStructure) -> "pymatgen.core.Structure":
    """Converts a structure to a pymatgen Structure; `info` becomes `properties`.

    Raises:
        ValueError: the atoms do not have a three-dimensional cell.
    """
    import ase
    from pymatgen.io.ase import AseAtomsAdaptor

    if not isinstance(structure, ase.Atoms):
        return structure
    if structure.cell.rank < 3:
        raise ValueError(
            f"{structure.get_chemical_formula()} has no 3-D cell, so it is not a crystal; save it as extxyz"
        )
    return AseAtomsAdaptor.get_structure(structure)  # pyright: ignore[reportArgumentType]


def write_structures(
    path: str | os.PathLike[str], structures: Iterable[AnyStructure], *, symprec: float | None = None
) -> None:
    """Writes structures atomically in the format of the suffix; a path without suffix is a folder of CIFs.

    LMDB keeps everything exactly; traj too, except per-atom arrays that ASE does not define; XYZ does not keep
    constraints, and rounds coordinates and arrays to 1e-8. CIF and CSV contain the crystal (to 8 decimals), CSV also
    the `properties` with a single value.

    Args:
        symprec: tolerance (Å) for finding the symmetry for a CIF; None writes all atoms in P1.

    Raises:
        ValueError: the suffix is unknown, or `path` is a non-empty folder.
    """
    path = pathlib.Path(path)
    kind = _kind(path) if path.suffix else "folder"
    with write_atomically(path) as temporary:
        if kind in ("cif", "csv", "folder"):
            write = {"cif": _write_cif, "csv": _write_csv, "folder": _write_folder}[kind]
            write(temporary, map(to_structure, structures), symprec)
        else:
            write = {"extxyz": _write_xyz, "traj": _write_traj, "lmdb": _write_lmdb}[kind]
            write(temporary, map(to_atoms, structures))


def _kind(path: pathlib.Path) -> str:
    if path.is_dir():
        return "lmdb" if (path / "data.mdb").is_file() else "cif"
    stem = pathlib.PurePath(path.stem) if is_compressed(path) else path
    kind = KINDS.get(stem.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} has an unknown suffix; expected one of {', '.join(KINDS)}, or a folder of CIFs")
    if is_compressed(path) and kind not in COMPRESSIBLE:
        raise ValueError(f"{path}: a compressed {kind} file cannot be used in place; decompress it first (gunzip)")
    return kind


def _read_texts(path: pathlib.Path) -> Iterator[Record]:
    for index, text, columns in iterate_texts(path):
        try:
            structure = parse_structure(text)
        except UnreadableStructure as error:
            yield Record(index, None, str(error))
        else:
            structure.properties.update(columns)
            yield Record(index, structure)


def _read_xyz(path: pathlib.Path) -> Iterator[Record]:
    # Frames are separated here and parsed by ASE one by one: a bad frame does not affect the others, and a gzip
    # file is read sequentially, 20 times as fast as with ASE, which seeks in it.
    with damage_explained(path), open_text(path) as lines:
        index = 0
        for header in lines:
            if not header.strip():
                continue
            if not header.strip().isdecimal():
                raise ValueError(f"{path}: frame {index} must begin with its number of atoms, found {header.strip()!r}")
            yield _parse_frame(index, [header, *itertools.islice(lines, int(header) + 1)])
            index += 1


def _parse_frame(index: int, lines: list[str]) -> Record:
    import ase.io
    from ase.io.extxyz import XYZError

    atoms = [re.sub(r"^(\s*)[DT](?=\s)", r"\1H", line) for line in lines[2:]]
    try:
        return Record(index, ase.io.read(io.StringIO("".join(lines[:2] + atoms)), format="extxyz"))  # pyright: ignore
    except (ValueError, LookupError, XYZError) as error:
        return Record(index, None, reason_of(error))


def _read_traj(path: pathlib.Path) -> Iterator[Record]:
    from ase.io.trajectory import TrajectoryReader
    from ase.io.ulm import InvalidULMFileError

    try:
        with TrajectoryReader(path) as frames:
            for index in range(len(frames)):
                yield Record(index, frames[index])  # pyright: ignore[reportArgumentType]
    except (InvalidULMFileError, ValueError) as error:
        raise ValueError(f"{path} is not a trajectory of ASE, or is cut off: {error}") from error


def _read_lmdb(path: pathlib.Path) -> Iterator[Record]:
    from matterform.io.lmdb import iterate_entries, parse_entry

    for index, entry in enumerate(iterate_entries(path)):
        try:
            yield Record(index, parse_entry(entry))
        except (ValueError, LookupError) as error:
            yield Record(index, None, reason_of(error))


def _write_cif(path: pathlib.Path, structures: Iterable["pymatgen.core.Structure"], symprec: float | None) -> None:
    with open_text(path, "w") as file:
        for index, structure in enumerate(structures):
            file.write(to_cif(structure, symprec, block_prefix=f"{index}_"))


def _write_folder(path: pathlib.Path, structures: Iterable["pymatgen.core.Structure"], symprec: float | None) -> None:
    path.mkdir()
    for index, structure in enumerate(structures):
        (path / f"{index:06d}.cif").write_text(to_cif(structure, symprec), encoding="utf-8")


def _write_csv(path: pathlib.Path, structures: Iterable["pymatgen.core.Structure"], symprec: float | None) -> None:
    import pandas as pd

    rows = []
    for structure in structures:
        single = {name: value for name, value in structure.properties.items() if pd.api.types.is_scalar(value)}
        rows.append(single | {"cif": to_cif(structure, symprec)})
    write_table(path, pd.DataFrame(rows or {"cif": []}))


def _write_xyz(path: pathlib.Path, structures: Iterable["ase.Atoms"]) -> None:
    import ase.io

    with open_text(path, "w") as file:
        for atoms in structures:
            ase.io.write(file, atoms, format="extxyz")


def _write_traj(path: pathlib.Path, structures: Iterable["ase.Atoms"]) -> None:
    from ase.io.trajectory import TrajectoryWriter

    with TrajectoryWriter(path) as writer:
        for atoms in structures:
            writer.write(atoms)


def _write_lmdb(path: pathlib.Path, structures: Iterable["ase.Atoms"]) -> None:
    from matterform.io.lmdb import write_rows

    write_rows(path, structures)
