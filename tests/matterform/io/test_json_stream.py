"""Members of JSON lists, whatever the parts in which the file is read."""

import io
import json
import pathlib

import numpy as np
import pytest

import matterform.io.json_stream
from matterform.io.json_stream import iterate_json_list

MEMBERS = [1, -2.5e3, 'a "quoted" ] text, é', None, True, [], [1, [2]], {"a": {"b": [1]}}, {}]


def members_of(text, key="entries"):
    return list(iterate_json_list(io.StringIO(text), pathlib.Path("x.json"), key))


@pytest.mark.parametrize("chunk", [1, 3, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_members_are_those_of_the_whole_text(monkeypatch, chunk, indent):
    monkeypatch.setattr(matterform.io.json_stream, "CHUNK", chunk)
    for content in (MEMBERS, {"date": {"entries": [3]}, "entries": MEMBERS, "rest": 1}):
        assert members_of(json.dumps(content, indent=indent)) == MEMBERS


def test_undefined_uncertainties_of_pymatgen_are_read():
    assert np.isnan(members_of('[{"uncertainty_per_atom": NaN}]')[0]["uncertainty_per_atom"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", r"x.json is damaged, cut off or of another layout after 2 entries, at its end: expected , or \]"),
        ("[1, x]", "after 1 entries, at 'x]'"),
        ('{"results": []}', 'there is no key "entries"'),
        ("3", r"expected \["),
    ],
)
def test_damage_is_named_with_its_place(text, message):
    with pytest.raises(ValueError, match=message):
        members_of(text)
