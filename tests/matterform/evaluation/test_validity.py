import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matterform.evaluation.validity import strict_validity, structural_validity


def test_distances_decide_at_half_an_angstrom(rock_salt):
    validity = structural_validity([rock_salt(5.64), rock_salt(1.002), rock_salt(0.998)])
    assert validity.valid.tolist() == [True, True, False]
    np.testing.assert_allclose(validity.min_distance_ang, [2.82, 0.501, 0.499], rtol=1e-9)
    assert validity.reason[:2] == ("", "")
    assert validity.reason[2] == "atoms too close: 0.499 Å between Na (site 0) and Cl (site 5), below 0.5 Å"


def test_own_images_count_except_in_the_form_of_cdvae():
    chain = Structure(Lattice.orthorhombic(0.4, 5, 5), ["Na", "Cl"], [[0, 0, 0], [0, 0.5, 0.5]])
    validity = structural_validity([chain, Structure(chain.lattice, ["Na"], [[0, 0, 0]])])
    assert validity.valid.tolist() == [False, False]
    assert validity.valid_between_sites.tolist() == [True, True]
    assert validity.reason[0] == "atoms too close: 0.400 Å between Na (site 0) and its own image, below 0.5 Å"
    np.testing.assert_allclose(validity.min_distance_ang, 0.4)
    np.testing.assert_allclose(validity.min_distance_between_sites_ang, [12.5**0.5, np.inf])


def test_absurd_crystals_are_counted_with_a_reason(absurd):
    validity = structural_validity(list(absurd.values()))
    valid = dict(zip(absurd, validity.valid.tolist(), strict=True))
    assert valid == dict.fromkeys(absurd, False) | {"needle": True}
    assert [bool(reason) for reason in validity.reason] == [not v for v in valid.values()]
    assert np.isnan(validity.min_distance_ang[0])
    strict = strict_validity(list(absurd.values()))
    assert not strict.valid.any()
    assert all(strict.reason)


def test_strict_form_compares_with_covalent_radii(rock_salt):
    # Radii of Na and Cl are 1.66 and 1.02 Å: the limit is 0.5 (0.7 + 1.66 + 1.02) = 1.69 Å, so the edge 3.38 Å.
    strict = strict_validity([rock_salt(3.39), rock_salt(3.37)])
    assert strict.valid.tolist() == [True, False]
    assert strict.reason[1] == "atoms too close: 1.685 Å between Na (site 0) and Cl (site 5), below 1.69 Å"


def test_strict_form_bounds_densities():
    # One H in a cube of 10 Å weighs 1.008 u / 1000 Å³ = 0.00167 g/cm³; one in 50 Å is below 1e-5 atoms/Å³ as well.
    gases = [Structure(Lattice.cubic(edge), ["H"], [[0, 0, 0]]) for edge in (10, 50)]
    assert strict_validity(gases).reason == (
        "density out of range: 0.00167 g/cm³, not in 0.01 to 25",
        "atom density out of range: 8e-06 atoms/Å³, not in 1e-05 to 0.5",
    )


def test_strict_form_names_what_it_cannot_judge():
    mixed = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    berkelium = Structure(Lattice.cubic(4), ["Na", "Bk"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert strict_validity([mixed, berkelium]).reason == (
        "sites with partial occupancy",
        "no covalent radius is known for Bk",
    )


def test_nothing_to_judge_gives_empty_arrays():
    assert structural_validity([]).valid.shape == (0,)
    assert strict_validity([]).valid.shape == (0,)


def test_real_crystals_are_valid(real_crystals):
    validity = structural_validity(real_crystals)
    assert validity.valid.all()
    assert validity.min_distance_ang.min() == pytest.approx(0.971, abs=1e-3)  # an O-H bond
    assert strict_validity(real_crystals[:60]).valid.all()
