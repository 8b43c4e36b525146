"""Keyword options find their place in the config objects, under our names and the published ones."""

import logging

import pytest

from agedi.sampling.config import ForcefieldGuidanceConfig, InpaintConfig, SampleConfig, SamplerConfig
from agedi.sampling.options import configs_from_options
from agedi.sampling.request import SampleRequest


def config_of(**options):
    return configs_from_options(options, SampleConfig)[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SampleConfig()),
        ({"n_samples": 3, "progress_bar": True}, SampleConfig(num_samples=3, progress=True)),
        ({"steps": 5, "eps": 0.01}, SampleConfig(sampler=SamplerConfig(steps=5, eps=0.01))),
        ({"sampler_kwargs": {"grid": "rho"}}, SampleConfig(sampler=SamplerConfig(grid="rho"))),
        (
            {"sampler": "ffpc", "ffpc_temperature": 0.026, "ffpc_terminal_steps": 9},
            SampleConfig(sampler=SamplerConfig(sampler="ffpc", temperature=0.026, terminal_steps=9)),
        ),
        ({"ff_guidance": 2}, SampleConfig(guidance=ForcefieldGuidanceConfig(guidance=2.0))),
        ({"ff_guidance": 2.0, "ff_zeta": 1.0}, SampleConfig(guidance=ForcefieldGuidanceConfig(guidance=2.0, zeta=1.0))),
        ({"ff_guidance": {"zeta": 1.0}}, SampleConfig(guidance=ForcefieldGuidanceConfig(zeta=1.0))),
        (
            {"ff_guidance": ForcefieldGuidanceConfig(max_extra_steps=3)},
            SampleConfig(guidance=ForcefieldGuidanceConfig(max_extra_steps=3)),
        ),
        ({"sampler": None, "ff_guidance": None, "sampler_kwargs": None, "compile": True}, SampleConfig()),
    ],
)
def test_options_become_settings(options, expected):
    assert config_of(**options) == expected


def test_options_are_shared_out_among_classes():
    request, inpaint, config = configs_from_options(
        {"formula": "Cu2", "t_start": 0.5, "seed": 1}, SampleRequest, InpaintConfig, SampleConfig
    )
    assert request.formula == "Cu2"
    assert (inpaint, config) == (InpaintConfig(t_start=0.5), SampleConfig(seed=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stepps": 5}, "unknown key 'stepps'; did you mean 'steps'"),
        ({"cutoff": 5}, "unknown key 'cutoff'; the known ones are num_samples, "),
        ({"num_samples": 1, "n_samples": 1}, "num_samples is given twice; the last time as n_samples"),
        ({"eps": 0.1, "sampler_kwargs": {"eps": 0.1}}, "eps is given twice"),
        ({"sampler_kwargs": {"steps": 5}}, "sampler_kwargs must be among .*; got 'steps'"),
        ({"ff_guidance": {"weight": 5}}, "ff_guidance may have guidance, zeta, .*; got 'weight'"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"sampler": "euler"}, "sampler must be one of em, pc, heun, ddim, heun_ode, ffpc; got 'euler'"),
        ({"grid": "cosine"}, "grid must be uniform or rho; got 'cosine'"),
        ({"ffpc_terminal_dynamics": "md"}, "terminal_dynamics must be overdamped or langevin_md; got 'md'"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        config_of(**options)


def test_a_published_option_without_effect_is_answered(caplog):
    with caplog.at_level(logging.WARNING):
        assert config_of(print_timings=True, compile=True) == SampleConfig()
    assert caplog.messages == ["print_timings is an option of the command line only"]
