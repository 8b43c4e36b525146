"""Seventeen scaled properties of every element, as input of the network; special tokens have none.

The raw values are in assets/element_features.csv, written by assets/make_element_features.py, which names the sources.
"""

import functools
import pathlib

import numpy as np
from jaxtyping import Float

from atomformer.data.vocabulary import VOCAB_SIZE
from matterform.io.tables import read_rows

FEATURES_CSV = pathlib.Path(__file__).parents[1] / "assets" / "element_features.csv"
UNKNOWN = -1.0


@functools.cache
def element_features() -> Float[np.ndarray, "123 17"]:
    """Features of every token, each scaled to [0, 1] over the elements with a known value; -1 if unknown.

    Columns: atomic number, mass, neutrons, protons, electrons, period, group, radius, electronegativity, first
    ionisation energy, density, melting point, boiling point, isotopes, specific heat, shells, valence electrons.
    Published weights contain their own table, made from other sources, which is used with them. The array is read-only
    because it is shared.
    """
    raw = np.array([list(row.values()) for row in read_rows(FEATURES_CSV)], np.float64)
    low, high = np.nanmin(raw, axis=0), np.nanmax(raw, axis=0)
    features = np.full((VOCAB_SIZE, raw.shape[1]), UNKNOWN, np.float32)
    features[1 : len(raw) + 1] = np.nan_to_num((raw - low[None]) / (high - low)[None], nan=UNKNOWN)
    features.flags.writeable = False
    return features
