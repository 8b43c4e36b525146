"""Public names of crystalformer.rl."""

import subprocess
import sys

import crystalformer.rl


def test_every_public_name_is_there():
    assert set(crystalformer.rl.__all__) <= set(dir(crystalformer.rl))
    for name in crystalformer.rl.__all__:
        assert getattr(crystalformer.rl, name).__name__ == name


def test_configs_load_without_jax():
    names = ", ".join(name for name in crystalformer.rl.__all__ if name.endswith("Config"))
    code = f"import sys; from crystalformer.rl import {names}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
