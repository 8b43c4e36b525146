"""MPtrj (Deng et al. 2023, doi:10.1038/s42256-023-00716-3): relaxations of the Materials Project, one JSON file.

`MPtrj_2022.9_full.json` (12 GB) contains {mp_id: {frame_id: frame}}. It is read material by material, so only one
material is in memory. Per-atom magnetic moments are left out: rows have no column for them.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from atomformer.data.converters.reading import Entry, list_files, open_stream, read_entries
from atomformer.data.rows import Row
from atomformer.data.sources import ReadRow
from matterform.elements import atomic_number
from matterform.errors import one_line

# Voigt's order of a symmetric matrix, as in ASE: xx, yy, zz, yz, xz, xy.
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])


def iterate_rows(path: str | os.PathLike[str], *, energy: str = "corrected") -> Iterator[ReadRow]:
    """The frames in the order of the file. `bandgap` (eV), `stress`, `mp_id` and `frame_id` are kept as properties.

    `formation_energy` is the file's `ef_per_atom` times the number of atoms. `stress` is in eV/Å³, six components in
    Voigt's order, with the sign of ASE; the file has kbar and the opposite sign, as VASP.

    Args:
        energy: which total energy, "corrected" or "uncorrected". The corrected energies (MP2020 scheme) belong to the
            formation energies and are comparable between calculations with and without a Hubbard U. The corrections do
            not depend on the positions, so the forces belong to both.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: an unknown kind of energy, or a file that is not JSON or is cut off.
        ModuleNotFoundError: ijson is missing (extra `datasets`).
    """
    if energy not in ("corrected", "uncorrected"):
        raise ValueError(f"energy: expected 'corrected' or 'uncorrected', found {energy!r}")
    return read_entries(path, _iterate_entries(path, f"{energy}_total_energy"))


def _iterate_entries(path: str | os.PathLike[str], energy_key: str) -> Iterator[Entry]:
    ijson = _import_ijson()
    for file in list_files(path, (".json",)):
        try:
            with open_stream(file) as stream:
                for mp_id, frames in ijson.kvitems(stream, "", use_float=True):
                    if not isinstance(frames, dict):
                        frames = {mp_id: frames}  # reported below, with its name
                    for frame_id, frame in frames.items():
                        yield functools.partial(_read_frame, mp_id, frame_id, frame, energy_key)
        except ijson.JSONError as error:
            raise ValueError(
                f"{file} is not JSON, or is cut off ({one_line(error)[:200]}); fetch it again, or "
                "replace NaN, which JSON does not have, by null"
            ) from error


def _read_frame(mp_id: str, frame_id: str, frame: Any, energy_key: str) -> Row:
    if not isinstance(frame, dict) or not isinstance(frame.get("structure"), dict):
        raise ValueError(f"{mp_id}, {frame_id}: expected a frame with a structure, found {str(frame)[:80]!r}")
    lattice, sites = frame["structure"]["lattice"], frame["structure"]["sites"]
    # pymatgen takes 10 times as long to build its objects.
    cell = np.asarray(lattice["matrix"], np.float64)
    frac = np.asarray([site["abc"] for site in sites], np.float64).reshape(-1, 3)
    per_atom = frame.get("ef_per_atom")
    return {
        "input_ids": np.asarray([_number_of(index, site["species"]) for index, site in enumerate(sites)], np.int32),
        "coords": frac @ cell,
        "cell": cell,
        "pbc": lattice.get("pbc", [True, True, True]),
        "forces": frame.get("force"),
        "formation_energy": None if per_atom is None else per_atom * len(sites),
        "total_energy": frame.get(energy_key),
        "stress": _to_ase_stress(frame.get("stress")),
        "bandgap": frame.get("bandgap"),
        "mp_id": frame.get("mp_id", mp_id),
        "frame_id": frame_id,
    }


def _number_of(index: int, species: list[dict[str, Any]]) -> int:
    if len(species) != 1 or species[0]["occu"] != 1:
        found = ", ".join(f"{kind['element']} {kind['occu']}" for kind in species)
        raise ValueError(f"atom {index}: expected one element that fills its site, found {found or 'none'}")
    return atomic_number(species[0]["element"])


def _to_ase_stress(stress_kbar: list[list[float]] | None) -> Float[np.ndarray, "6"] | None:
    """ASE's stress (eV/Å³, 6) from VASP's (kbar, 3 x 3, of opposite sign)."""
    from ase.units import GPa

    return None if stress_kbar is None else np.asarray(stress_kbar, np.float64)[VOIGT] * (-0.1 * GPa)


def _import_ijson() -> Any:
    try:
        import ijson
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("MPtrj needs the package ijson: pip install 'matterform[datasets]'") from error
    return ijson
