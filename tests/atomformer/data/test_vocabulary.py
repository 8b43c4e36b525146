"""The 123 tokens, by number and by name."""

import numpy as np
import pytest

from atomformer.data.vocabulary import BOS, EOS, GRAPH, MASK, PAD, VOCAB_SIZE, token_names, tokenize
from matterform.elements import atomic_number


def test_tokens_have_their_published_numbers():
    names = token_names()
    assert len(names) == len(set(names)) == VOCAB_SIZE == 123
    special = {MASK: "<mask>", PAD: "<pad>", BOS: "<bos>", EOS: "<eos>", GRAPH: "<graph>"}
    assert {token: names[token] for token in (0, 119, 120, 121, 122)} == special
    assert [atomic_number(name) for name in names[1:119]] == list(range(1, 119))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("MgCCHeNNN", [12, 6, 6, 2, 7, 7, 7]),
        ("Co", [27]),
        ("CO", [6, 8]),
        ("CCo", [6, 27]),
        ("HHOs", [1, 1, 76]),
        ("<bos>H<mask><graph><eos><pad>", [120, 1, 0, 122, 121, 119]),
        ("", []),
    ],
)
def test_two_letter_symbols_come_first(text, tokens):
    found = tokenize(text)
    assert found.dtype == np.int32
    assert found.tolist() == tokens


def test_every_pair_of_tokens_survives_the_round_trip():
    pairs = np.stack(np.meshgrid(np.arange(VOCAB_SIZE), np.arange(VOCAB_SIZE)), axis=-1).reshape(-1)
    np.testing.assert_array_equal(tokenize("".join(token_names()[token] for token in pairs)), pairs)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CH4", "'4' at position 2"),
        ("MgXx", "'X' at position 2"),
        ("c", "'c' at position 0"),
        ("C H", "' ' at position 1"),
        ("H<cls>", "'<' at position 1"),
    ],
)
def test_what_is_no_token_is_named_with_its_position(text, found):
    with pytest.raises(ValueError, match="cannot tokenise") as caught:
        tokenize(text)
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)
