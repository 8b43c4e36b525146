"""Builds spacegroups.npz from pyxtal's Wyckoff tables: `python crystalformer/assets/make_spacegroups.py`.

All operations of all Wyckoff positions of the 230 space groups (origin choice 2, hexagonal axes), letters in the
order a, b, ..., and each position's operations in pyxtal's order: the first one defines a site's representative.
For the 24 groups that spglib standardises to origin choice 1, also the shift by which it goes on to choice 2. Other
shifts would do, but they may exchange letters (a and b in I4_1/amd), and published sequences were made with this one.
"""

import pathlib

import numpy as np
import spglib
from pyxtal.symmetry import Group, pyxtal_hall_numbers, spglib_hall_numbers

TARGET = pathlib.Path(__file__).with_name("spacegroups.npz")
NUM_LETTERS = 28  # padding, a to z, and A


def build_tables() -> dict[str, np.ndarray]:
    """Returns multiplicity (230, 28) and the rotation and 24 x translation of every operation, one after the other."""
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
        "origin_shift": np.array([origin_shift(number) for number in range(1, 231)], np.int8),
    }


def origin_shift(number: int) -> np.ndarray:
    """24 x the shift of coordinates from spglib's default setting to pyxtal's, seen on a made-up crystal."""
    default, wanted = spglib_hall_numbers[number - 1], pyxtal_hall_numbers[number - 1]
    if default == wanted:
        return np.zeros(3)
    symmetry = spglib.get_symmetry_from_database(default)
    points = np.array([[0.637, 0.270, 0.041], [0.017, 0.813, 0.913], [0.607, 0.730, 0.544]])
    frac = np.concatenate([symmetry["rotations"] @ point + symmetry["translations"] for point in points])
    numbers = np.repeat([1, 2, 3], len(symmetry["rotations"]))
    lattice = np.diag([15, 16 if number < 75 else 15, 17 if number < 195 else 15])
    dataset = spglib.get_symmetry_dataset((lattice, frac, numbers), 1e-3, hall_number=wanted)
    if dataset is None or dataset.number != number or np.abs(dataset.transformation_matrix - np.eye(3)).max() > 1e-6:
        raise ValueError(f"origin_shift: expected spglib to keep the axes of group {number}; its choices changed")
    return (24 * dataset.origin_shift).round()


if __name__ == "__main__":
    np.savez_compressed(TARGET, **build_tables())
