"""What a user writes becomes arrays, or one clear error."""

import dataclasses
import json

import numpy as np
import pytest

from crystalformer.sampling.constraints import FREE, check_constraints, make_constraints, read_constraints


def numbers(mask) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_nothing_asked_allows_everything(tiny_config):
    constraints = make_constraints(tiny_config)
    assert constraints.letters.tolist() == [FREE] * 7
    assert constraints.ties.tolist() == [FREE] * 7
    assert constraints.elements.shape == (7, 119)
    assert constraints.elements[:, 1:].all()
    assert not constraints.elements[:, 0].any()


def test_letters_are_exactly_these_sites(tiny_config):
    assert make_constraints(tiny_config, letters=["a", "b", "z", "A"]).letters.tolist() == [1, 2, 26, 27, 0, 0, 0]


def test_elements_meet_site_lists_and_exclusions(tiny_config):
    constraints = make_constraints(
        tiny_config,
        elements=["O", "Na", "He", "U"],
        site_elements=[["O", "Ti"], []],
        no_radioactive=True,
        no_noble_gas=True,
    )
    assert numbers(constraints.elements[0]) == [8]
    assert numbers(constraints.elements[1]) == numbers(constraints.elements[6]) == [8, 11]


def test_exclusions_are_the_elements_one_expects(tiny_config):
    allowed = make_constraints(tiny_config, no_radioactive=True, no_noble_gas=True).elements[0]
    noble, radioactive = [2, 10, 18, 36, 54, 86], [43, 61, 84, 85, 87, 88, 92, 94, 118]
    assert not allowed[noble].any()
    assert not allowed[radioactive].any()
    assert allowed[[1, 8, 26, 60, 79, 82]].all()


def test_ties_lead_to_the_first_site_and_meet(tiny_config):
    constraints = make_constraints(
        tiny_config, site_elements=[[], ["V", "Cr"], [], ["Cr", "O"], ["O", "Cr", "V"]], ties=[[3, 1], [4, 3]]
    )
    assert constraints.ties.tolist() == [FREE, FREE, FREE, 1, 1, FREE, FREE]
    assert all(numbers(constraints.elements[site]) == [24] for site in (1, 3, 4))
    assert constraints.elements[2, 1:].all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"letters": ["a"] * 7}, "letters: a crystal has at most 6 sites here; got 7"),
        ({"letters": ["B"]}, "letter: expected one of"),
        ({"letters": ["ab"]}, "letter: expected one of"),
        ({"letters": [""]}, "letter: expected one of"),
        ({"site_elements": [["O"]] * 7}, "site_elements: a crystal has at most 6 sites here; got 7"),
        ({"elements": ["Xx"]}, "Xx"),
        ({"site_elements": [["O"], ["Oxygen"]]}, "Oxygen"),
        ({"elements": ["O"], "site_elements": [[], ["Ti"]]}, "no element is left for site 1"),
        ({"elements": ["He"], "no_noble_gas": True}, "no element is left for site 0"),
        ({"ties": [[0, 6]]}, r"expected pairs of two different sites in 0\.\.5; got \[0, 6\]"),
        ({"ties": [[2, 2]]}, "expected pairs of two different sites"),
        ({"ties": [[0, 1, 2]]}, "expected pairs of two different sites"),
        ({"ties": [[-1, 2]]}, "expected pairs of two different sites"),
        ({"site_elements": [["O"], ["S"]], "ties": [[0, 1]]}, r"tied sites \[0, 1\] have no allowed element in common"),
    ],
)
def test_demands_that_cannot_be_met_are_refused(tiny_config, asked, message):
    with pytest.raises(ValueError, match=message):
        make_constraints(tiny_config, **asked)


def test_demands_beyond_the_vocabulary_are_refused(tiny_config):
    small = dataclasses.replace(tiny_config, atom_types=30, wyck_types=10)
    assert make_constraints(small, letters=["i"], elements=["Cu"]).elements.shape == (7, 30)
    with pytest.raises(ValueError, match="this network has atomic numbers below 30, not Zn"):
        make_constraints(small, elements=["Cu", "Zn"])
    with pytest.raises(ValueError, match="letters: this network has a to i, not j"):
        make_constraints(small, letters=["j"])


def test_the_json_of_the_specification_is_read(tmp_path, tiny_config):
    path = tmp_path / "constraints.json"
    path.write_text(json.dumps({"atom_mask": [["V", "Cr"], ["O", "S"], []], "constraints": [[0, 2]]}))
    constraints = make_constraints(tiny_config, letters=["a", "b", "c"], **read_constraints(path))
    assert numbers(constraints.elements[0]) == numbers(constraints.elements[2]) == [23, 24]
    assert numbers(constraints.elements[1]) == [8, 16]
    assert constraints.ties[2] == 0


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"atom_masks": []}',
        '{"atom_mask": ["V"]}',
        '{"atom_mask": 3}',
        '{"atom_mask": null}',
        '{"atom_mask": {}}',
        '{"atom_mask": [[3]]}',
        '{"constraints": [[0, "1"]]}',
        '{"constraints": [[0, true]]}',
        '{"constraints": [[0, 1.5]]}',
    ],
)
def test_other_json_is_refused_with_the_file_name(tmp_path, text):
    path = tmp_path / "constraints.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"constraints\.json"):
        read_constraints(path)


def test_letters_must_stand_in_the_space_group(tiny_config):
    def check(letters, *groups):
        check_constraints(make_constraints(tiny_config, letters=letters), np.array(groups), tiny_config)

    check(["a", "b", "e", "e"], 225)
    check([], 1, 230)
    with pytest.raises(ValueError, match="space group 225 has a to l, so m cannot be a site"):
        check(["a", "m"], 225)
    with pytest.raises(ValueError, match="alphabetic order; found a after b"):
        check(["b", "a"], 225)
    with pytest.raises(ValueError, match="a of space group 225 is a fixed position"):
        check(["a", "a"], 225)
    with pytest.raises(ValueError, match="space group 1 has a to a, so b cannot"):
        check(["b"], 225, 1)


def test_constraints_of_another_network_are_refused(tiny_config):
    larger = dataclasses.replace(tiny_config, n_max=9)
    with pytest.raises(ValueError, match=r"for \(n_max, atom_types\) = \(9, 119\), but this network has \(7, 119\)"):
        check_constraints(make_constraints(larger), np.array([1]), tiny_config)
