"""Reading of crystals by the commands: unreadable entries are listed and counted."""

import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from matterform.progress import progress_bar

if TYPE_CHECKING:
    import numpy as np
    import pymatgen.core


class ReadCrystals(NamedTuple):
    """Crystals of a file, their positions in it, and {position: reason} for unreadable entries."""

    structures: "list[pymatgen.core.Structure]"
    indices: list[int]
    refused: dict[int, str]


def read_crystals(path: pathlib.Path, limit: int | None = None) -> ReadCrystals:
    """Reads crystals of any format; lists unreadable entries on standard error.

    Raises:
        ValueError: the file contains no readable crystal.
    """
    from matterform.io.formats import iterate_crystals

    structures, indices, refused = [], [], {}
    with progress_bar(f"reading {path.name}") as progress:
        for crystal in itertools.islice(iterate_crystals(path), limit):
            if crystal.structure is None:
                refused[crystal.index] = crystal.reason
                sys.stderr.write(f"matterform: {path}, structure {crystal.index} refused: {crystal.reason}\n")
            else:
                structures.append(crystal.structure)
                indices.append(crystal.index)
            progress(len(structures) + len(refused))
    if not structures:
        raise ValueError(f"{path} holds no crystal that could be read")
    return ReadCrystals(structures, indices, refused)


def number_column(structures: "Sequence[pymatgen.core.Structure]", name: str, path: pathlib.Path) -> "np.ndarray":
    """The numbers in a column of the crystals' file; NaN for empty cells.

    Raises:
        ValueError: the column does not exist, or a cell is not a number.
    """
    import numpy as np

    known = {key for structure in structures for key in structure.properties}
    if name not in known:
        raise ValueError(f"{path} has no column {name!r}; it has {', '.join(sorted(known)) or 'none'}")
    try:
        return np.array([float(structure.properties.get(name, "nan")) for structure in structures])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: column {name!r} holds more than numbers ({error})") from error
