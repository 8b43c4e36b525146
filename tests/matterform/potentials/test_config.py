"""Which settings are valid, and that they need no PyTorch."""

import subprocess
import sys

import pytest

from matterform.potentials.config import PotentialConfig, PropertyConfig


def test_the_settings_import_no_package_of_models():
    code = "import sys, matterform.potentials.config; assert not {'torch', 'ase', 'pymatgen', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mlff_batch_size": 0}, "mlff_batch_size"),
        ({"threads": 0}, "threads"),
        ({"workers": -1}, "workers"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PotentialConfig(**settings)
    with pytest.raises(ValueError, match="property_batch_size"):
        PropertyConfig(property_batch_size=0)
