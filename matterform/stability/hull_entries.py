"""Compact reference entries: grouped by chemical system, memory-mapped, shared between processes."""

import array
import datetime
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matterform.elements import atomic_number
from matterform.io.files import existing, write_atomically

if TYPE_CHECKING:
    import pymatgen.core

Kind = Literal["total", "formation"]

FORMAT = 1
INFO = "info.json"
SAME_COMPOSITION = 8  # decimals to which the fractions of equal compositions agree
MAX_ENUMERATED = 12  # elements; with more, all systems are searched instead of all 2^k subsets


class Fractions(NamedTuple):
    """A composition: a chemical system and the atomic fractions of its elements."""

    system: bytes  # atomic numbers, ascending
    values: Float[np.ndarray, " k"]  # atomic fractions in the order of `system`


class Entry(NamedTuple):
    """One reference entry: a composition and its energy, either total (corrected) or of formation."""

    fractions: Fractions
    energy_per_atom: float  # eV/atom


class Entries(NamedTuple):
    """The lowest entry of every composition, grouped by chemical system.

    System s has the k elements `systems[s]`, the entries `entry_start[s]:entry_start[s + 1]`, and k fractions for each
    of them from `fraction_start[s]` on.
    """

    kind: Kind
    systems: np.ndarray  # (s,) bytes: ascending atomic numbers; sorted
    entry_start: Int[np.ndarray, " s+1"]
    fraction_start: Int[np.ndarray, " s+1"]
    energies: Float[np.ndarray, " n"]  # eV/atom
    fractions: Float[np.ndarray, " m"]
    count: int  # number of entries read, including those that are not the lowest of their composition


ARRAYS = ("systems", "entry_start", "fraction_start", "energies", "fractions")


def fractions_of(composition: "pymatgen.core.Composition") -> Fractions:
    """The chemical system and atomic fractions of a composition; charges are ignored, deuterium is hydrogen.

    Raises:
        ValueError: the composition is empty, or contains an unknown element.
    """
    amounts: dict[int, float] = {}
    for species, amount in composition.items():
        number = atomic_number(species.symbol)
        amounts[number] = amounts.get(number, 0.0) + float(amount)
    total = sum(amounts.values())
    if not total > 0:
        raise ValueError("there are no atoms")
    numbers = sorted(amounts)
    return Fractions(bytes(numbers), np.array([amounts[number] for number in numbers]) / total)


def pack_entries(kind: Kind, entries: Iterable[Entry]) -> Entries:
    """Groups entries by chemical system; for formation energies, adds all their elements with energy zero.

    The memory is about 10 numbers per entry, independent of the size of its record in the file.
    """
    groups: dict[bytes, tuple[array.array[float], array.array[float]]] = {}
    count = 0

    def add(fractions: Fractions, energy: float) -> None:
        members = groups.setdefault(fractions.system, (array.array("d"), array.array("d")))
        members[0].append(energy)
        members[1].extend(fractions.values)

    for fractions, energy in entries:
        add(fractions, energy)
        count += 1
    if kind == "formation":
        for number in sorted(set(b"".join(groups))):
            add(Fractions(bytes([number]), np.ones(1)), 0.0)
    systems = sorted(groups)
    lowest = [_lowest(np.array(groups[s][0]), np.array(groups[s][1]).reshape(-1, len(s))) for s in systems]
    return Entries(
        kind,
        np.array(systems, f"S{max(map(len, systems), default=1)}"),
        np.cumsum([0, *(len(energies) for energies, _ in lowest)]),
        np.cumsum([0, *(fractions.size for _, fractions in lowest)]),
        np.concatenate([np.empty(0), *(energies for energies, _ in lowest)]),
        np.concatenate([np.empty(0), *(fractions.ravel() for _, fractions in lowest)]),
        count,
    )


def _lowest(energies: np.ndarray, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest entry of each composition."""
    if len(energies) == 1:
        return energies, fractions
    order = np.argsort(energies, kind="stable")
    _, first = np.unique(fractions[order].round(SAME_COMPOSITION), axis=0, return_index=True)
    return energies[order[first]], fractions[order[first]]


class Subsystem(NamedTuple):
    """All entries whose elements belong to a chemical system, i.e. its possible decomposition products."""

    fractions: Float[np.ndarray, "n k"]  # atomic fractions, in the order of the elements of the system
    energies: Float[np.ndarray, " n"]  # eV/atom


def select(entries: Entries, system: bytes) -> Subsystem:
    """The entries whose elements are all in `system`."""
    fractions, energies = [np.empty((0, len(system)))], [np.empty(0)]
    place = {number: column for column, number in enumerate(system)}
    for index in _subsystems(entries.systems, system):
        members = slice(entries.entry_start[index], entries.entry_start[index + 1])
        numbers = entries.systems[index]
        block = entries.fractions[entries.fraction_start[index] : entries.fraction_start[index + 1]]
        full = np.zeros((members.stop - members.start, len(system)))
        full[:, [place[number] for number in numbers]] = block.reshape(-1, len(numbers))
        fractions.append(full)
        energies.append(entries.energies[members])
    return Subsystem(np.concatenate(fractions), np.concatenate(energies))


def _subsystems(systems: np.ndarray, system: bytes) -> Sequence[int]:
    """Indices of the subsets of `system` in the sorted `systems`."""
    if len(system) > MAX_ENUMERATED:
        return [index for index, numbers in enumerate(systems) if set(numbers) <= set(system)]
    wanted = [bytes(subset) for size in range(1, len(system) + 1) for subset in combinations(system, size)]
    wanted = [subset for subset in wanted if len(subset) <= systems.dtype.itemsize]
    places = np.searchsorted(systems, np.array(wanted, systems.dtype)).tolist()
    return [
        place for place, subset in zip(places, wanted, strict=True) if place < len(systems) and systems[place] == subset
    ]


def save_entries(entries: Entries, folder: str | os.PathLike[str], source: str) -> None:
    """Writes a folder for `open_entries`, atomically.

    Raises:
        ValueError: `folder` is a non-empty folder.
    """
    with write_atomically(folder) as temporary:
        temporary.mkdir()
        for name in ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(entries, name), allow_pickle=False)
        info = {
            "format": FORMAT,
            "kind": entries.kind,
            "source": source,
            "entries": entries.count,
            "compositions": len(entries.energies),
            "systems": len(entries.systems),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        }
        (temporary / INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")


def open_entries(folder: str | os.PathLike[str]) -> Entries:
    """Opens a folder of entries with memory-mapped arrays, which processes share and which are read only where used.

    Raises:
        ValueError: the folder is not one of entries, was written by another version, or its arrays are inconsistent.
    """
    folder = existing(folder)
    info = _read_info(folder)
    arrays = {name: _map(folder / f"{name}.npy") for name in ARRAYS}
    num_systems, num_entries, num_fractions = (len(arrays[name]) for name in ("systems", "energies", "fractions"))
    for name, end in (("entry_start", num_entries), ("fraction_start", num_fractions)):
        if len(arrays[name]) != num_systems + 1 or arrays[name][-1] != end:
            raise ValueError(f"{folder / name}.npy does not fit the other arrays there; index the hull again")
    return Entries(kind=info["kind"], count=info["entries"], **arrays)


def _read_info(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / INFO
    if not path.is_file():
        raise ValueError(f"{folder} is not an indexed hull: it has no {INFO}; `matterform hull SOURCE OUT` writes one")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); index the hull again") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT or info.get("kind") not in ("total", "formation"):
        raise ValueError(f"{path} is of another version or no hull's; index the hull again")
    return info


def _map(path: pathlib.Path) -> np.ndarray:
    try:
        # A plain view of the mapped file, because slices of numpy.memmap are slow.
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); index the hull again") from error
