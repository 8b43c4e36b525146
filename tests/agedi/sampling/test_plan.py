"""Time grids: their ends, monotony, noise levels, and the steps back of resampled inpainting."""

import numpy as np
import pytest

from agedi.config import DiffusionConfig
from agedi.noise.noisers import make_position_noiser
from agedi.sampling.config import InpaintConfig, SamplerConfig
from agedi.sampling.plan import make_plan

TORUS = DiffusionConfig(sigma_max=3.0)


@pytest.mark.parametrize("grid", ["uniform", "rho"])
def test_a_plan_goes_from_the_prior_to_0_without_gaps(grid):
    plan = make_plan(SamplerConfig(steps=9, eps=0.01, grid=grid), make_position_noiser(TORUS), None)
    assert plan.t[0] == 1.0
    assert plan.t[-1] == pytest.approx(0.01, rel=1e-3)
    assert plan.t_next[-1] == 0.0
    assert plan.noise_next[-1] == 0.0
    np.testing.assert_array_equal(plan.t[1:], plan.t_next[:-1])
    assert (np.diff(plan.noise) < 0).all()
    assert not plan.renoise.any()


def test_grid_rho_is_even_in_the_root_of_the_noise_level():
    """Karras et al. (2022), eq. 5."""
    plan = make_plan(SamplerConfig(steps=12, grid="rho", rho=5.0), make_position_noiser(TORUS), None)
    np.testing.assert_allclose(np.diff(plan.noise ** (1 / 5), 2), 0.0, atol=2e-3)


def test_one_step_and_species_alone():
    single = make_plan(SamplerConfig(steps=1), make_position_noiser(TORUS), None)
    assert (single.t.tolist(), single.t_next.tolist()) == ([1.0], [0.0])
    species = make_plan(SamplerConfig(steps=3, grid="rho"), None, None)
    assert species.noise.tolist() == [0.0] * 3
    np.testing.assert_allclose(species.t, [1.0, 0.5005, 0.001], rtol=1e-6)


def test_inpainting_starts_later_and_its_last_step_with_it():
    plan = make_plan(SamplerConfig(steps=3, eps=0.4), make_position_noiser(TORUS), InpaintConfig(t_start=0.2))
    np.testing.assert_allclose(plan.t, [0.2, 0.15, 0.1], rtol=1e-6)


def test_steps_of_resampled_inpainting():
    plan = make_plan(SamplerConfig(steps=4), make_position_noiser(TORUS), InpaintConfig(n_resample=3, jump_length=2))
    assert len(plan.t) == 4 * (3 * 2 + 2)
    assert plan.renoise.sum() == 4 * 2
    assert np.array_equal(plan.t[1:], plan.t_next[:-1])
    assert plan.t_next[-1] == 0.0
