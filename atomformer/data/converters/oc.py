"""OC20 (doi:10.1021/acscatal.0c04525) and OC22 (doi:10.1021/acscatal.2c05426): adsorbates on surfaces, S2EF.

A split is a folder with `N.extxyz.xz` (frames; also read decompressed or as .gz) and beside it `N.txt.xz`, one line per
frame: `system_id,frame_number,reference_energy` as in `random2181546,frame0,-317.20`. OC22 has no reference energies;
its frames come as such pairs, as extxyz alone, or as ASE trajectories (.traj). LMDBs of either release contain pickles,
which are not read because they can run code.
"""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterator

from atomformer.data.converters.reading import (
    OPENERS,
    Entry,
    Frame,
    iterate_frames,
    list_files,
    open_stream,
    read_entries,
)
from atomformer.data.rows import Row, row_from_atoms
from atomformer.data.sources import ReadRow


def iterate_rows(path: str | os.PathLike[str], *, release: str = "oc20") -> Iterator[ReadRow]:
    """The frames of a split (a folder or one of its files), file by file in numerical order.

    `total_energy` (eV) is that of the file; in OC20 `formation_energy` is the adsorption energy, total minus reference.
    Tags (0 below the surface, 1 surface, 2 adsorbate) are `token_type_ids`. `system_id` and `frame_number` are
    properties.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: an unknown release, a pair of files with different numbers of lines and frames, a missing file of a
            pair, or a damaged file.
    """
    if release not in ("oc20", "oc22"):
        raise ValueError(f"release: expected 'oc20' or 'oc22', found {release!r}")
    return read_entries(path, _iterate_entries(path, release))


def _iterate_entries(path: str | os.PathLike[str], release: str) -> Iterator[Entry]:
    for file in list_files(path, (".extxyz",) if release == "oc20" else (".extxyz", ".traj")):
        log = _find_log(file)
        if log is not None:
            read = _read_referenced if release == "oc20" else _read_identified
            for frame, place, line in _zip_frames(file, log):
                yield functools.partial(read, frame, place, line)
        elif release == "oc20":
            raise ValueError(
                f"{file} has no {_stem(file)}.txt (.xz, .gz) beside it, which holds the reference energies"
            )
        else:
            yield from (functools.partial(_read_row, frame, {}) for frame in iterate_frames(file))


def _zip_frames(file: pathlib.Path, log: pathlib.Path) -> Iterator[tuple[Frame, str, str]]:
    """Each frame with its line and the place of that line. A pair of files has about 5000 frames."""
    with open_stream(log) as stream:
        lines = stream.read().decode(errors="replace").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    count = 0
    for count, frame in enumerate(iterate_frames(file), start=1):
        if count <= len(lines):
            yield frame, f"line {count} of {log.name}", lines[count - 1]
    if count != len(lines):
        raise ValueError(
            f"{file} has {count} frames but {log.name} has {len(lines)} lines: expected one line per frame; the two "
            "do not belong together, or one is cut off: fetch both again"
        )


def _read_identified(frame: Frame, place: str, line: str) -> Row:
    return _read_row(frame, _parse_ids(place, line.split(",")[:2]))


def _read_referenced(frame: Frame, place: str, line: str) -> Row:
    fields = line.split(",")
    if len(fields) != 3:
        raise ValueError(f"{place}: expected system_id,frame_number,reference_energy, found {line[:80]!r}")
    try:
        reference = float(fields[2])
    except ValueError as error:
        raise ValueError(f"{place}: expected a reference energy (eV), found {fields[2]!r}") from error
    row = _read_row(frame, _parse_ids(place, fields[:2]))
    if "total_energy" in row:
        row["formation_energy"] = row["total_energy"] - reference
    return row


def _parse_ids(place: str, fields: list[str]) -> Row:
    """The numbers in `random2181546` and `frame0`."""
    names = ("system_id", "frame_number")
    numbers = ["".join(itertools.dropwhile(str.isalpha, field.strip())) for field in fields]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{place}: expected ids such as random2181546,frame0, found {','.join(fields)[:80]!r}")
    return dict(zip(names, map(int, numbers), strict=True))


def _read_row(frame: Frame, properties: Row) -> Row:
    atoms = frame()
    tags = {"token_type_ids": atoms.get_tags()} if atoms.has("tags") else {}
    return row_from_atoms(atoms, properties=properties | tags)


def _stem(file: pathlib.Path) -> str:
    return file.name.split(".")[0]


def _find_log(file: pathlib.Path) -> pathlib.Path | None:
    names = [f"{_stem(file)}.txt{compression}" for compression in ("", *OPENERS)]
    return next((file.with_name(name) for name in names if file.with_name(name).is_file()), None)
