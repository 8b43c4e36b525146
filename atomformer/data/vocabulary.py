"""The vocabulary: 118 elements, whose tokens are their atomic numbers, and five special tokens."""

import functools
import re

import numpy as np
from jaxtyping import Int

from matterform.elements import element_table

MASK, PAD, BOS, EOS, GRAPH = 0, 119, 120, 121, 122
VOCAB_SIZE = 123


@functools.cache
def token_names() -> tuple[str, ...]:
    """The name of every token, in order."""
    symbols = element_table().symbol.tolist()
    return ("<mask>", *symbols[1:], "<pad>", "<bos>", "<eos>", "<graph>")


@functools.cache
def _pattern() -> re.Pattern[str]:
    longest_first = sorted(token_names(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def tokenize(text: str) -> Int[np.ndarray, " n"]:
    """Tokens of a string of names without counts, e.g. "MgCCHeNNN"; the longest name is taken, so "Co" is cobalt.

    Raises:
        ValueError: the text contains something else than names, such as digits or spaces.
    """
    numbers = {name: token for token, name in enumerate(token_names())}
    tokens, position = [], 0
    while position < len(text):
        found = _pattern().match(text, position)
        if found is None:
            raise ValueError(
                f"cannot tokenise {text!r}: expected an element symbol or a token such as <mask>, "
                f"found {text[position]!r} at position {position}; write CHHHH for CH4"
            )
        tokens.append(numbers[found.group()])
        position = found.end()
    return np.array(tokens, np.int32)
