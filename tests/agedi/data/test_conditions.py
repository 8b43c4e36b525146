"""Names, kinds and statistics of the properties that a model is conditioned on."""

import pytest

from agedi.data.conditions import condition_kinds, make_conditions


def test_names_and_kinds():
    assert condition_kinds("none", "scalar") == {}
    assert condition_kinds((), "integer") == {}
    assert condition_kinds("a, b", "integer") == {"a": "integer", "b": "integer"}
    assert condition_kinds(["a", "b"], ["node", "scalar"]) == {"a": "node", "b": "scalar"}


def test_unknown_and_repeated_properties_are_refused():
    with pytest.raises(ValueError, match="twice: a, a"):
        condition_kinds("a,a", "scalar")
    with pytest.raises(ValueError, match="one for each of a, b"):
        condition_kinds("a,b", ["scalar"] * 3)
    with pytest.raises(ValueError, match="got 'vector'"):
        condition_kinds("a", "vector")


def test_extensive_properties_are_marked():
    energy, gap = make_conditions("energy, gap", "scalar")
    assert (energy.name, energy.extensive, gap.name, gap.extensive) == ("energy", True, "gap", False)
