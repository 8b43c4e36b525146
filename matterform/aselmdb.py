"""LMDB files in the layout of ASE databases (`.aselmdb`, as OMat24 and OMol25 use): entries are compressed JSON.

Keys are "1", "2", ... and "nextid"; a missing number is a deleted row. `data` of a row holds `Atoms.info`, and under
`ARRAYS` the per-atom arrays that ASE's rows have no place for. Nothing is ever unpickled: a pickle is code.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import ase

ARRAYS = "__arrays__"
# ASE's rows keep these by name.
STANDARD_ARRAYS = ("numbers", "positions", "tags", "masses", "momenta", "initial_magmoms", "initial_charges")
# Address space only: the file grows with what is written.
MAP_SIZE = 1 << 40


def iterate_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rows of an LMDB in order, as plain dicts (see `row_to_atoms`).

    Raises:
        ValueError: not an LMDB, not an ASE database, or entries are pickles.
    """
    lmdb = _import_lmdb()
    path = pathlib.Path(path)
    try:
        env = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise ValueError(f"{path} cannot be opened as LMDB: {error}") from error
    with env, env.begin() as transaction:
        next_id = transaction.get(b"nextid")
        if next_id is None:
            found = [bytes(value[:2]) for _, value in transaction.cursor()]
            _refuse_pickle(path, found)
            raise ValueError(f"{path} is not an ASE database: it has no key 'nextid' among its {len(found)} entries")
        for number in range(1, _decode(path, next_id)):
            entry = transaction.get(str(number).encode())
            if entry is not None:
                yield _decode(path, entry)


def row_to_atoms(row: dict[str, Any]) -> "ase.Atoms":
    """One row as Atoms: `key_value_pairs` and `data` go to info, results (energy, forces, ...) to a calculator."""
    from ase.db.row import AtomsRow

    if missing := {"numbers", "positions"} - row.keys():
        raise ValueError(f"the row lacks {', '.join(sorted(missing))}; it has {', '.join(row)}")
    lists = {key: np.array(value) for key, value in row.items() if isinstance(value, list) and key != "constraints"}
    ase_row = AtomsRow(row | lists)
    atoms = ase_row.toatoms()
    data = dict(ase_row.data)
    for name, array in data.pop(ARRAYS, {}).items():
        atoms.set_array(name, array)
    atoms.info.update(ase_row.key_value_pairs | data)
    return atoms


def write_rows(path: str | os.PathLike[str], structures: Iterable["ase.Atoms"]) -> None:
    """Writes a new LMDB, one row a structure, with info, arrays, constraints and results."""
    lmdb = _import_lmdb()
    with lmdb.open(str(path), subdir=False, lock=False, map_size=MAP_SIZE) as env, env.begin(write=True) as transaction:
        number = 0
        for number, atoms in enumerate(structures, start=1):
            transaction.put(str(number).encode(), _encode(_to_row(atoms)))
        transaction.put(b"nextid", _encode(number + 1))


def _to_row(atoms: "ase.Atoms") -> dict[str, Any]:
    from ase.db.row import atoms2dict
    from ase.io.jsonio import encode

    arrays = {name: array for name, array in atoms.arrays.items() if name not in STANDARD_ARRAYS}
    data = atoms.info | ({ARRAYS: arrays} if arrays else {})
    # ASE decodes a string lazily and gives NumPy arrays back with their types.
    return {**atoms2dict(atoms), "cell": atoms.cell.array, "pbc": atoms.pbc, "data": encode(data)}


def _encode(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, default=lambda array: array.tolist()).encode())


def _decode(path: pathlib.Path, entry: bytes) -> Any:
    _refuse_pickle(path, [entry[:2]])
    try:
        return json.loads(zlib.decompress(entry))
    except (zlib.error, ValueError) as error:
        raise ValueError(
            f"{path} holds an entry that is not compressed JSON ({error}); is it an ASE database?"
        ) from error


def _refuse_pickle(path: pathlib.Path, beginnings: list[bytes]) -> None:
    if any(beginning[:1] == b"\x80" for beginning in beginnings):  # the mark of a pickle of protocol 2 and later
        raise ValueError(
            f"{path} holds pickles, which can run any code when they are read; where you trust it, read it with the "
            "program that wrote it, turn each entry into ase.Atoms and save them with "
            "matterform.formats.write_structures('NAME.lmdb', atoms)"
        )


def _import_lmdb() -> Any:
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LMDB files need the package lmdb: pip install 'matterform[datasets]'") from error
    return lmdb
