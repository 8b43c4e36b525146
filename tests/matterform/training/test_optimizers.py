"""Schedules and first steps against numbers worked by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from matterform.training.config import OptimizerConfig
from matterform.training.optimizers import make_optimizer, make_schedule, with_rate_scale


def rates(counts, **options):
    schedule = make_schedule(OptimizerConfig(learning_rate=0.1, **options))
    return [float(schedule(count)) for count in counts]


def test_constant_schedule_with_warmup():
    # (t + 1) / 4 of 0.1 while t < 4.
    assert rates([0, 1, 3, 4, 100], warmup_steps=4) == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])


def test_inverse_time_schedule():
    # 0.1 / (1 + 0.5 t)
    assert rates([0, 1, 2, 18], schedule="inverse_time", decay=0.5) == pytest.approx([0.1, 0.1 / 1.5, 0.05, 0.01])


def test_cosine_schedule():
    # 0.1 (0.2 + 0.8 (1 + cos(pi t / 8)) / 2): cos is 1, 1/sqrt 2, 0, -1 at t = 0, 2, 4, 8.
    quarter = 0.1 * (0.2 + 0.4 * (1 + 0.5**0.5))
    found = rates([0, 2, 4, 8, 50], schedule="cosine", total_steps=8, final_fraction=0.2)
    assert found == pytest.approx([0.1, quarter, 0.06, 0.02, 0.02])


def first_update(gradient, **options):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, **options))
    params = {"w": np.array([1.0, -2.0], np.float32)}
    updates, _ = optimizer.update({"w": np.array(gradient, np.float32)}, optimizer.init(params), params)
    return np.asarray(updates["w"])


def test_first_adam_step():
    # The bias-corrected moments are g and g^2: -0.1 g / (|g| + 1).
    np.testing.assert_allclose(first_update([3.0, -1.0], adam_eps=1.0), [-0.1 * 3 / 4, 0.1 / 2], rtol=1e-5)


def test_first_adamw_step_decays_weights():
    # Adam's -0.1 g / (|g| + 1), and -0.1 * 0.5 w.
    found = first_update([3.0, -1.0], adam_eps=1.0, optimizer="adamw", weight_decay=0.5)
    np.testing.assert_allclose(found, [-0.075 - 0.05, 0.05 + 0.1], rtol=1e-5)


def test_clipping_by_norm_and_by_value():
    # (3, 4) has norm 5 and is scaled by 1/5: -0.1 g / (|g| + 1) at (0.6, 0.8).
    np.testing.assert_allclose(
        first_update([3.0, 4.0], adam_eps=1.0, clip_norm=1.0), [-0.06 / 1.6, -0.08 / 1.8], rtol=1e-5
    )
    # (3, -0.5) is cut to (1, -0.5).
    found = first_update([3.0, -0.5], adam_eps=1.0, clip_value=1.0)
    np.testing.assert_allclose(found, [-0.05, 0.05 / 1.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("learning_rate", {"learning_rate": 0.0}),
        ("b2", {"b2": 1.0}),
        ("clip_norm", {"clip_norm": 0.0}),
        ("weight_decay", {"weight_decay": 0.1}),
        ("total_steps", {"schedule": "cosine", "total_steps": 0}),
        ("warmup_steps", {"warmup_steps": -1}),
        ("plateau_factor", {"plateau_factor": 1.0}),
        ("plateau_patience", {"plateau_patience": 0}),
    ],
)
def test_wrong_options_are_refused_by_name(field, options):
    with pytest.raises(ValueError, match=f"^{field}"):
        OptimizerConfig(**options)


@pytest.mark.parametrize("field", ["optimizer", "schedule"])
def test_unknown_kinds_are_refused(field):
    # The type checker of the tests sees the wrong word before the config does.
    with pytest.raises((ValueError, TypeError), match=rf"^{field} must be one of|parameter '{field}'"):
        OptimizerConfig(**{field: "sgd"})


def test_cosine_without_total_steps_lasts_the_run():
    config = OptimizerConfig(schedule="cosine", learning_rate=1.0, optimizer="adam")
    params = {"w": jnp.ones(())}

    def updates(optimizer, count):
        state, found = optimizer.init(params), []
        for _ in range(count):
            change, state = optimizer.update({"w": jnp.ones(())}, state, params)
            found.append(float(change["w"]))
        return found

    explicit = make_optimizer(dataclasses.replace(config, total_steps=5))
    assert updates(make_optimizer(config, run_steps=5), 6) == updates(explicit, 6)
    with pytest.raises(ValueError, match="total_steps"):
        make_optimizer(config)


def test_warmup_may_be_a_fraction_of_the_run():
    config = OptimizerConfig(learning_rate=1.0, schedule="constant")
    params, gradient = {"w": jnp.ones(())}, {"w": jnp.ones(())}

    def first_update(optimizer):
        return float(optimizer.update(gradient, optimizer.init(params), params)[0]["w"])

    by_steps = make_optimizer(dataclasses.replace(config, warmup_steps=4))
    assert first_update(make_optimizer(dataclasses.replace(config, warmup_fraction=0.04), 100)) == first_update(
        by_steps
    )
    assert first_update(by_steps) == pytest.approx(first_update(make_optimizer(config)) / 4)
    with pytest.raises(ValueError, match="warmup_fraction"):
        make_optimizer(dataclasses.replace(config, warmup_fraction=0.04))


def test_the_rate_of_a_plateau_schedule_is_what_the_loop_sets():
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.1, optimizer="adamw", weight_decay=0.5, schedule="plateau", adam_eps=1.0)
    )
    params = {"w": np.array([1.0, -2.0], np.float32)}
    gradient = {"w": np.array([3.0, -1.0], np.float32)}
    state = optimizer.init(params)
    # -0.1 (g / (|g| + 1) + 0.5 w), and half of it.
    expected = np.array([-0.075 - 0.05, 0.05 + 0.1])
    np.testing.assert_allclose(optimizer.update(gradient, state, params)[0]["w"], expected, rtol=1e-5)
    updates, after = optimizer.update(gradient, with_rate_scale(state, jnp.float32(0.5)), params)
    np.testing.assert_allclose(updates["w"], expected / 2, rtol=1e-5)
    np.testing.assert_allclose(
        optimizer.update(gradient, after, params)[0]["w"],
        optimizer.update(gradient, optimizer.update(gradient, state, params)[1], params)[0]["w"] / 2,
        rtol=1e-5,
    )
