"""The public names of the package: light to import, and all of them there."""

import subprocess
import sys

import pytest

import matterform


def test_every_public_name_can_be_used():
    assert set(matterform.__all__) <= set(dir(matterform))
    for name in matterform.__all__:
        assert getattr(matterform, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'open_hulls'"):
        matterform.open_hulls  # noqa: B018


def test_listing_the_names_loads_nothing():
    code = (
        "import sys, matterform; dir(matterform); assert not {'numpy', 'pandas', 'pymatgen', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
