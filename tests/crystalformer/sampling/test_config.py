"""Settings of sampling and MCMC refuse what cannot be sampled, by name."""

import pytest

from crystalformer.sampling.config import McmcConfig, SamplingConfig
from matterform.config import from_dict


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must lie in"),
        ({"T1": 1e7}, "T1 must lie in"),
        ({"top_p": 1.5}, r"top_p must lie in \[0, 1\]; got 1.5"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
def test_impossible_sampling_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mcmc_sweeps": -1}, "mcmc_sweeps must be a number of sweeps"), ({"mcmc_width": 0.0}, "mcmc_width must be")],
)
def test_impossible_moves_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        McmcConfig(**settings)


def test_published_names_are_understood():
    assert from_dict(SamplingConfig, {"batchsize": 7}) == SamplingConfig(batch_size=7)
    assert from_dict(McmcConfig, {"nsweeps": 3, "mc_width": 0.2}) == McmcConfig(mcmc_sweeps=3, mcmc_width=0.2)
