"""LMDB files in the layout of ASE databases (`.aselmdb`, as OMat24 and OMol25 use): entries are compressed JSON.

Keys are "1", "2", ... and "nextid"; a missing number is a deleted row. `data` of a row contains `Atoms.info` and, under
`ARRAYS`, the per-atom arrays that ASE's rows cannot store. Nothing is unpickled, because a pickle can run code.

Rows are made and read by ASE itself. Why ase-db-backends 0.11 does not open the file: it writes 40,000 rows in 19.6 s
where this takes 5.0 s, since it searches a list of all rows for each new one (reading is equal, 4.7 and 5.0 s); it
reads a file of something else as an empty database, reads no LMDB folders, and needs clients of PostgreSQL and MySQL.
"""

import itertools
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ase

ARRAYS = "__arrays__"
# ASE's rows keep these by name.
STANDARD_ARRAYS = ("numbers", "positions", "tags", "masses", "momenta", "initial_magmoms", "initial_charges")
# Reserved address space; the file itself grows only with the data written.
MAP_SIZE = 1 << 40
PICKLE_ADVICE = (
    "it holds pickles, which can run any code when they are read; where you trust it, read it with the program that "
    "wrote it and save the structures as ase.Atoms with matterform.io.formats.write_structures('NAME.lmdb', atoms)"
)


def iterate_entries(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The rows of an LMDB in order, as stored bytes; `parse_entry` turns one into Atoms.

    Raises:
        ValueError: the file is not an LMDB or not an ASE database, or its entries are pickles.
        ModuleNotFoundError: lmdb is not installed; the message names the extra to install.
    """
    lmdb = _import_lmdb()
    path = pathlib.Path(path)
    try:
        env = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise ValueError(f"{path} cannot be opened as LMDB: {error}") from error
    with env, env.begin() as transaction:
        next_id = transaction.get(b"nextid")
        if next_id is None or _is_pickle(next_id):
            pickles = any(_is_pickle(value) for _, value in itertools.islice(transaction.cursor(), 10))
            raise ValueError(
                f"{path} is not an ASE database (no key 'nextid'){': ' + PICKLE_ADVICE if pickles else ''}"
            )
        for number in range(1, _decode(next_id)):
            entry = transaction.get(str(number).encode())
            if entry is not None:
                yield entry


def parse_entry(entry: bytes) -> "ase.Atoms":
    """Converts one row to Atoms: `key_value_pairs` and `data` become info, results (eV, eV/Å, ...) a calculator.

    Raises:
        ValueError: the entry is a pickle, not compressed JSON, or not a structure.
    """
    from ase.db.row import AtomsRow

    row = _decode(entry)
    if missing := {"numbers", "positions"} - row.keys():
        raise ValueError(f"the row lacks {', '.join(sorted(missing))}; it has {', '.join(row)}")
    ase_row = AtomsRow(row)
    atoms = ase_row.toatoms()
    data = dict(ase_row.data)
    for name, array in data.pop(ARRAYS, {}).items():
        atoms.set_array(name, array)
    atoms.info.update(ase_row.key_value_pairs | data)
    return atoms


def write_rows(path: str | os.PathLike[str], structures: Iterable["ase.Atoms"]) -> None:
    """Writes a new LMDB with one row per structure: atoms with info, arrays, constraints and results.

    Raises:
        ModuleNotFoundError: lmdb is not installed; the message names the extra to install.
    """
    lmdb = _import_lmdb()
    with lmdb.open(str(path), subdir=False, lock=False, map_size=MAP_SIZE) as env, env.begin(write=True) as transaction:
        number = 0
        for number, atoms in enumerate(structures, start=1):
            transaction.put(str(number).encode(), _encode(_to_row(atoms)))
        transaction.put(b"nextid", _encode(number + 1))


def _to_row(atoms: "ase.Atoms") -> dict[str, Any]:
    from ase.db.core import now
    from ase.db.row import atoms2dict

    arrays = {name: array for name, array in atoms.arrays.items() if name not in STANDARD_ARRAYS}
    data = atoms.info | ({ARRAYS: arrays} if arrays else {})
    times = {"ctime": now(), "mtime": now()}  # shown by ASE's database tools
    return {**atoms2dict(atoms), **times, "cell": atoms.cell.array, "pbc": atoms.pbc, "data": data}


def _encode(value: Any) -> bytes:
    from ase.io.jsonio import encode

    return zlib.compress(encode(value).encode())


def _decode(entry: bytes) -> Any:
    from ase.io.jsonio import decode

    if _is_pickle(entry):
        raise ValueError(PICKLE_ADVICE)
    try:
        return decode(zlib.decompress(entry).decode(), always_array=False)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"the entry is not compressed JSON ({error})") from error


def _is_pickle(entry: bytes) -> bool:
    return entry[:1] == b"\x80"  # the mark of protocol 2 and later; compressed JSON begins with "x"


def _import_lmdb() -> Any:
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LMDB files need the package lmdb: pip install 'matterform[datasets]'") from error
    return lmdb
