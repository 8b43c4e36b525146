"""Wyckoff positions of the 230 space groups in the standard setting (origin choice 2, hexagonal axes).

Letters are integers: a=1 ... z=26, A=27; 0 is padding. The tables are assets/spacegroups.npz, built by
assets/make_spacegroups.py from pyxtal, whose order of operations fixes the representative of a site.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

SPACEGROUPS_NPZ = pathlib.Path(__file__).parents[1] / "assets" / "spacegroups.npz"
LETTERS = "-abcdefghijklmnopqrstuvwxyzA"  # the index of a letter is its W


class SymmetryTables(NamedTuple):
    """Tables indexed [G - 1, W]; the multiplicity of letter 0, and of letters that a group does not have, is 0."""

    multiplicity: Int[np.ndarray, "230 28"]
    num_letters: Int[np.ndarray, " 230"]
    first_op: Float[np.ndarray, "230 28 3 4"]  # affine map onto the representative's line, plane or point
    has_no_freedom: Bool[np.ndarray, "230 28"]  # the rotation part of `first_op` is zero
    free_coordinate: Bool[np.ndarray, "230 28 3"]  # whether a row of that rotation part is not zero


@functools.cache
def symmetry_tables() -> SymmetryTables:
    """Loads the symmetry tables as read-only NumPy arrays."""
    offset, operations = _operations()
    multiplicity = np.diff(offset).reshape(230, 28).astype(np.int32)
    present = multiplicity > 0
    first_op = np.zeros((230, 28, 3, 4), np.float32)
    first_op[present] = operations[offset[:-1].reshape(230, 28)[present]]
    rotation = first_op[..., :3]
    free_coordinate = (rotation != 0).any(-1)
    tables = SymmetryTables(
        multiplicity=multiplicity,
        num_letters=present.sum(1).astype(np.int32),
        first_op=first_op,
        has_no_freedom=~free_coordinate.any(-1),
        free_coordinate=free_coordinate,
    )
    for table in tables:
        table.setflags(write=False)
    return tables


def wyckoff_operations(G: int, W: int) -> Float[np.ndarray, "m 3 4"]:
    """All operations of a Wyckoff position; applied to any point, they give an orbit of that position.

    Raises:
        ValueError: if `G` is not a space group or has no letter `W`.
    """
    if not 1 <= G <= 230:
        raise ValueError(f"G: expected a space group number from 1 to 230, found {G}")
    num_letters = symmetry_tables().num_letters[G - 1]
    if not 1 <= W <= num_letters:
        raise ValueError(f"W: space group {G} has the letters 1 to {num_letters}, found {W}")
    offset, operations = _operations()
    position = 28 * (G - 1) + W
    return operations[offset[position] : offset[position + 1]]


def general_operations(G: int) -> Float[np.ndarray, "m 3 4"]:
    """All operations of a space group: those of its last letter, the general position.

    Raises:
        ValueError: if `G` is not a space group.
    """
    return wyckoff_operations(G, int(symmetry_tables().num_letters[G - 1]))


def apply_operations(operations: Float[np.ndarray, "m 3 4"], point: Float[np.ndarray, "3"]) -> Float[np.ndarray, "m 3"]:
    """Images of a point (fractional coordinates) under affine operations, not wrapped."""
    return operations[:, :, :3] @ point + operations[:, :, 3]


@functools.cache
def origin_shifts() -> Float[np.ndarray, "230 3"]:
    """Shift of fractional coordinates from origin choice 1 (spglib's default) to 2 (ours); row G - 1 is group G."""
    with np.load(SPACEGROUPS_NPZ) as file:
        shifts = file["origin_shift"] / 24.0
    shifts.setflags(write=False)
    return shifts


def count_spacegroups(groups: Int[Any, " b"]) -> Int[np.ndarray, "230"]:
    """Number of occurrences of each space group; entry 0 is group 1."""
    return np.bincount(groups, minlength=231)[1:]


def draw_spacegroups(
    frequencies: Float[np.ndarray, "230"] | Int[np.ndarray, "230"], number: int, seed: int | Sequence[int]
) -> Int[np.ndarray, " b"]:
    """Draws space group numbers with probabilities proportional to `frequencies`, whose entry 0 is group 1."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.arange(1, 231), size=number, p=frequencies / frequencies.sum())


def letter_index(letter: str) -> int:
    """The integer of a Wyckoff letter: a=1 ... z=26, A=27.

    Raises:
        ValueError: if `letter` is not one of them.
    """
    index = LETTERS.find(letter)
    if index < 1 or len(letter) != 1:
        raise ValueError(f"letter: expected one of {LETTERS[1:]}, found {letter!r}")
    return index


@functools.cache
def _operations() -> tuple[Int[np.ndarray, " p"], Float[np.ndarray, "m 3 4"]]:
    """The start of each (group, letter), 230 * 28 + 1 numbers, and the concatenated operations of all positions."""
    with np.load(SPACEGROUPS_NPZ) as file:
        offset = np.concatenate([[0], file["multiplicity"].astype(np.int64).ravel().cumsum()])
        translation = file["translation"][..., None] / 24.0
        operations = np.concatenate([file["rotation"].astype(np.float64), translation], axis=-1)
    operations.setflags(write=False)
    return offset, operations
