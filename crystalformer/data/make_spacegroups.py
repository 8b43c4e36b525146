"""Builds spacegroups.npz from pyxtal's Wyckoff tables: `python crystalformer/data/make_spacegroups.py`.

All operations of all Wyckoff positions of the 230 space groups (origin choice 2, hexagonal axes), letters in the
order a, b, ..., and each position's operations in pyxtal's order: the first one defines a site's representative.
"""

import pathlib

import numpy as np
from pyxtal.symmetry import Group

TARGET = pathlib.Path(__file__).with_name("spacegroups.npz")
NUM_LETTERS = 28  # padding, a to z, and A


def build_tables() -> dict[str, np.ndarray]:
    """Returns multiplicity (230, 28) and, over all groups and letters, rotation and 24 x translation of each operation."""
    multiplicity = np.zeros((230, NUM_LETTERS), np.int16)
    blocks = []
    for number in range(1, 231):
        # pyxtal lists the general position first; reversed, index 1 is the letter a.
        for letter, position in enumerate(reversed(Group(number).Wyckoff_positions), start=1):
            multiplicity[number - 1, letter] = len(position.ops)
            blocks.append(np.stack([operation.affine_matrix[:3] for operation in position.ops]))
    operations = np.concatenate(blocks)
    rotation, translation = operations[..., :3], 24 * operations[..., 3]
    if np.abs(rotation - rotation.round()).max() + np.abs(translation - translation.round()).max() > 1e-6:
        raise ValueError("operations: expected integer rotations and translations in 24ths; pyxtal's tables changed")
    return {
        "multiplicity": multiplicity,
        "rotation": rotation.round().astype(np.int8),
        "translation": translation.round().astype(np.int8),
    }


if __name__ == "__main__":
    np.savez_compressed(TARGET, **build_tables())
