"""Settings of sampling refuse values out of range and settings that their sampler does not read."""

import math
import subprocess
import sys

import pytest

import agedi
from agedi.sampling.config import ForcefieldGuidanceConfig, InpaintConfig, SampleConfig, SamplerConfig


def test_importing_the_settings_loads_no_jax():
    code = "import sys, agedi.sampling.config; raise SystemExit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_are_public():
    for kind in (ForcefieldGuidanceConfig, InpaintConfig, SampleConfig, SamplerConfig):
        assert getattr(agedi, kind.__name__) is kind


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["rho", "corrector_snr", "temperature", "terminal_step_size", "terminal_friction"])
def test_sizes_must_be_positive_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        SamplerConfig(**{name: value})


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (SamplerConfig, {"churn": -0.1}, "churn must be at least 0"),
        (SamplerConfig, {"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        (SamplerConfig, {"eps": 1.0}, "eps must lie between 0 and 1"),
        (SamplerConfig, {"rho": 3.0}, "rho is for grid rho; the grid is uniform"),
        (SamplerConfig, {"churn": 3.0}, "churn is for sampler heun; the sampler is em"),
        (SamplerConfig, {"sampler": "pc", "temperature": 0.1}, "temperature is for sampler ffpc; the sampler is pc"),
        (ForcefieldGuidanceConfig, {"guidance": -0.1}, "ff_guidance: guidance must be at least 0"),
        (InpaintConfig, {"t_start": 1.1}, r"t_start must lie in \(0, 1\]"),
        (SampleConfig, {"num_samples": 0}, "num_samples must be a whole number of at least 1"),
        (SampleConfig, {"seed": -1}, "seed must be a whole number of at least 0"),
    ],
)
def test_wrong_settings_are_named(kind, values, words):
    with pytest.raises(ValueError, match=words):
        kind(**values)


def test_settings_that_a_sampler_reads():
    SamplerConfig(sampler="heun", churn=3.0)
    SamplerConfig(sampler="pc", corrector_steps=2, save_corrector_frames=True)
    SamplerConfig(sampler="ffpc", terminal_steps=2, terminal_friction=0.1)
    SamplerConfig(grid="rho", rho=3.0)
