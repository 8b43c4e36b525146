"""SPICE (Eastman et al. 2023, doi:10.1038/s41597-022-01882-6): conformations of molecules, in one HDF5 file.

One group per molecule: `atomic_numbers` (n,), `conformations` (m, n, 3), `dft_total_energy`, `formation_energy` (m,),
`dft_total_gradient` (m, n, 3), `smiles` and `subset`. Units are the attributes `units` of the arrays, or if missing
those of the documentation: bohr, hartree, hartree/bohr. Other arrays (charges, bond orders, moments) are ignored.
"""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from atomformer.data.converters.reading import Entry, list_files, read_entries
from atomformer.data.rows import Row
from atomformer.data.sources import ReadRow

if TYPE_CHECKING:
    import h5py

# The arrays to read, with their documented units; all but the first may be missing.
DOCUMENTED_UNITS = {
    "conformations": "bohr",
    "dft_total_energy": "hartree",
    "formation_energy": "hartree",
    "dft_total_gradient": "hartree/bohr",
}
COLUMNS = {"conformations": "coords", "dft_total_energy": "total_energy", "formation_energy": "formation_energy"}
CONFORMATIONS_AT_ONCE = 1000  # bounds memory


def iterate_rows(path: str | os.PathLike[str]) -> Iterator[ReadRow]:
    """The conformations, molecule by molecule in the order of the file (alphabetical). Forces are minus the gradient.

    `molecule` (the group's name), `smiles` and `subset` are kept as properties. A conformation with a NaN coordinate,
    total energy or gradient is a failed calculation and cannot be used.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: not HDF5, cut off, or an unknown unit.
        ModuleNotFoundError: h5py is missing (extra `datasets`).
    """
    return read_entries(path, _iterate_entries(path))


def _iterate_entries(path: str | os.PathLike[str]) -> Iterator[Entry]:
    h5py = _import_h5py()
    for file in list_files(path, (".hdf5", ".h5")):
        try:
            with h5py.File(file, "r") as groups:
                for name in groups:
                    group = groups.get(name)  # None for a link to nowhere
                    items = group.items() if isinstance(group, h5py.Group) else ()
                    arrays = {str(key): item for key, item in items if isinstance(item, h5py.Dataset)}
                    yield from _iterate_molecule(file, name, arrays)
        except (OSError, RuntimeError) as error:  # HDF5 raises either
            raise ValueError(f"{file} is not HDF5, or is damaged or cut off: {error}; fetch it again") from error


def _iterate_molecule(file: pathlib.Path, name: str, arrays: "dict[str, h5py.Dataset]") -> Iterator[Entry]:
    fault = _fault_of(arrays)
    if fault:
        yield functools.partial(_refuse, f"{name}: {fault}")
        return
    scales = {key: _scale_of(file, key, arrays[key]) for key in DOCUMENTED_UNITS if key in arrays}
    shared = {"input_ids": arrays["atomic_numbers"][:], "molecule": name}
    shared |= {key: _text(arrays[key]) for key in ("smiles", "subset") if key in arrays}
    for start in range(0, len(arrays["conformations"]), CONFORMATIONS_AT_ONCE):
        part = slice(start, start + CONFORMATIONS_AT_ONCE)
        columns = [arrays[key][part].astype(np.float64) * scale for key, scale in scales.items()]
        for values in zip(*columns, strict=True):
            yield functools.partial(_read_conformation, shared, dict(zip(scales, values, strict=True)))


def _read_conformation(shared: Row, values: dict[str, Any]) -> Row:
    for key in ("dft_total_energy", "dft_total_gradient"):
        if not np.isfinite(values.get(key, 0.0)).all():
            raise ValueError(f"{shared['molecule']}: {key} is not finite")
    row = shared | {column: values[key] for key, column in COLUMNS.items() if key in values}
    if "dft_total_gradient" in values:
        row["forces"] = -values["dft_total_gradient"]
    return row


def _fault_of(arrays: "dict[str, h5py.Dataset]") -> str:
    """The reason why these are not the arrays of a molecule; empty if they are."""
    if not {"atomic_numbers", "conformations"} <= arrays.keys():
        return f"expected a group with atomic_numbers and conformations, found {', '.join(arrays) or 'neither'}"
    m, n = arrays["conformations"].shape[:1], arrays["atomic_numbers"].shape
    shapes = {"conformations": (*m, *n, 3), "dft_total_gradient": (*m, *n, 3)}
    for key in ("atomic_numbers", *DOCUMENTED_UNITS):
        if key in arrays and arrays[key].dtype.kind not in "iuf":
            return f"{key} has entries of type {arrays[key].dtype}, expected numbers"
    for key in DOCUMENTED_UNITS:
        expected = shapes.get(key, m)
        if key in arrays and arrays[key].shape != expected:
            return f"{key} has shape {arrays[key].shape}, expected {expected} for {arrays['atomic_numbers'].size} atoms"
    return ""


def _refuse(reason: str) -> Row:
    raise ValueError(reason)


def _scale_of(file: pathlib.Path, name: str, dataset: "h5py.Dataset") -> float:
    """Factor from the unit of the array to Å, eV or eV/Å."""
    from ase import units

    lengths = {"bohr": units.Bohr, "angstrom": 1.0, "nm": units.nm, "nanometer": units.nm}
    molar = {"kj/mol": units.kJ / units.mol, "kcal/mol": units.kcal / units.mol}
    energies = {"hartree": units.Hartree, "ev": 1.0, **molar}
    gradients = {f"{e}/{l}": energies[e] / lengths[l] for e, l in itertools.product(energies, lengths)}
    known = {"conformations": lengths, "dft_total_gradient": gradients}.get(name, energies)
    unit = dataset.attrs.get("units", DOCUMENTED_UNITS[name])
    unit = unit.decode() if isinstance(unit, bytes) else str(unit)
    if unit.lower() not in known:
        raise ValueError(
            f"{file}: {dataset.name} is in {unit!r}, which is not known here; expected one of {', '.join(known)}"
        )
    return known[unit.lower()]


def _text(dataset: "h5py.Dataset") -> str | None:
    """The text in an array of one string; None for other arrays."""
    import h5py

    is_text = h5py.check_string_dtype(dataset.dtype) is not None and dataset.size == 1
    return str(np.asarray(dataset.asstr()[()]).item()) if is_text else None


def _import_h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("SPICE needs the package h5py: pip install 'matterform[datasets]'") from error
    return h5py
