import sys

import pytest
from pymatgen.core import Lattice, Structure

from matterform.evaluation.composition import compositional_validity


def crystal(**counts):
    species = [symbol for symbol, count in counts.items() for _ in range(count)]
    places = [[index / len(species), 0, 0] for index in range(len(species))]
    return Structure(Lattice.cubic(9), species, places)


def test_missing_smact_is_explained(monkeypatch, rock_salt):
    monkeypatch.setitem(sys.modules, "smact.screening", None)
    with pytest.raises(ImportError, match=r"pip install 'matterform\[eval\]'"):
        compositional_validity([rock_salt()])


def test_the_rules_by_hand():
    accepted = [
        crystal(Na=4, Cl=4),  # +1 -1
        crystal(Fe=4, O=6),  # 2 (+3) + 3 (-2)
        crystal(Si=3),  # an element
        crystal(Cu=1, Au=1),  # metals
    ]
    refused = [
        crystal(Na=1, Cl=2),  # would need Na +2
        crystal(Mg=1, O=3),
        crystal(He=1, O=1),  # He has no oxidation state
        crystal(Og=1, O=1),  # not in SMACT's tables
        Structure(Lattice.cubic(4), [], []),
        Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    ]
    assert compositional_validity(accepted).tolist() == [True] * len(accepted)
    assert compositional_validity(refused).tolist() == [False] * len(refused)


def test_pauling_refuses_anions_that_hold_electrons_less_than_the_cations():
    # Metals are positive, so P is -1 in both; it is less electronegative (2.19) than Pd (2.20), more than Ni (1.91).
    assert compositional_validity([crystal(Pd=1, P=1), crystal(Ni=1, P=1)]).tolist() == [False, True]


def test_about_nine_in_ten_real_crystals_pass(real_crystals):
    assert 0.86 < compositional_validity(real_crystals).mean() < 0.94
