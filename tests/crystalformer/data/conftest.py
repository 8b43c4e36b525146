"""A few structures, good and bad, and a table of them."""

import pathlib

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter


def rock_salt(cation: str, anion: str, edge: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(edge), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def many_sites(count: int) -> Structure:
    """A P1 crystal with `count` different sites."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[:count]
    return Structure(
        Lattice.from_parameters(9, 10, 11, 80, 95, 100), ["O"] * count, (grid + 0.4 * rng.random((count, 3))) / 3
    )


STRUCTURES = [
    rock_salt("Na", "Cl", 5.64),
    rock_salt("Mg", "O", 4.21),
    many_sites(20),
    many_sites(21),
    Structure(Lattice.cubic(4.1), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
]


@pytest.fixture(scope="session")
def structures() -> list[Structure]:
    """Six structures, of which 3 (too many sites) and 4 (partial occupancy) are refused."""
    return STRUCTURES


@pytest.fixture
def table(tmp_path) -> pathlib.Path:
    """A CSV with 9 rows, of which 4, 3 (too long), 6 (empty) and 7 (no CIF) are refused."""
    cifs = [str(CifWriter(structure)) for structure in STRUCTURES] + ["", "no crystal", str(CifWriter(STRUCTURES[0]))]
    columns = {
        "material_id": [f"m-{i}" for i in range(9)],
        "cif": cifs,
        "band_gap": [5.0, 7.8, 1.0, 1.0, 1.0, np.nan, 1.0, 1.0, 5.0],
        "formula": ["NaCl"] * 9,
    }
    path = tmp_path / "crystals.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path
