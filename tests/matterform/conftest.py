"""Crystals that every evaluation test may use."""

import pytest
from pymatgen.core import Lattice, Structure

from matterform.io.formats import read_structures


@pytest.fixture
def rock_salt():
    """Makes NaCl in its conventional cell with a given edge (Å)."""

    def make(edge_ang=5.64, anion="Cl"):
        return Structure.from_spacegroup(225, Lattice.cubic(edge_ang), ["Na", anion], [[0, 0, 0], [0.5, 0.5, 0.5]])

    return make


@pytest.fixture
def absurd():
    """Crystals that a model may produce and that no library survives: NaN, flat, needle-like, empty, overlapping."""
    nan, right = float("nan"), (90, 90, 90)
    return {
        "nan cell": Structure(Lattice.from_parameters(nan, 4, 4, *right), ["Na"], [[0, 0, 0]]),
        "nan coordinates": Structure(Lattice.cubic(4), ["Na"], [[nan, 0, 0]]),
        "impossible angles": Structure(Lattice.from_parameters(5, 5, 5, 20, 20, 170), ["Na"], [[0, 0, 0]]),
        "infinite volume": Structure(Lattice.cubic(1e150), ["Na"], [[0, 0, 0]]),
        "needle": Structure(Lattice.from_parameters(0.6, 0.6, 5000, *right), ["Na"], [[0, 0, 0]]),
        "no atoms": Structure(Lattice.cubic(4), [], []),
        "overlap": Structure(Lattice.cubic(4), ["Na", "Na"], [[0.1, 0, 0], [0.1, 0, 0]]),
    }


@pytest.fixture(scope="session")
def real_crystals(data_dir):
    """The first 300 of MP-20's binaries and ternaries."""
    structures, refused = read_structures(data_dir / "mp20_biternary.csv.gz", limit=300)
    assert not refused
    return structures
