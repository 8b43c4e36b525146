"""The objective: hand-worked values, what counts and what does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agedi.config import DiffusionConfig, ForceFieldConfig, RegressorLoss
from agedi.data.example import GraphExample
from agedi.data.graph import AtomsGraph
from agedi.loss import make_distance, make_example_loss, metric_names, types_loss
from agedi.network.score import Outputs, ScoreModel
from agedi.noise.kernels import LatticeSums, lattice_sums
from matterform.neighbors import Neighbors

pytestmark = pytest.mark.usefixtures("quick")

CELL = np.eye(3, dtype=np.float32) * 5
SUMS = lattice_sums(CELL[None], np.ones((1, 3), bool))
CONFIG = DiffusionConfig(sigma_max=2.5)


def example(count=6, fixed=2, padding=1, **changes):
    rng = np.random.default_rng(0)
    graph = AtomsGraph(
        x=np.where(np.arange(count) < count - padding, rng.choice([6, 8], count), 0).astype(np.int32),
        pos=rng.uniform(0, 5, (count, 3)).astype(np.float32),
        cell=CELL,
        pbc=np.ones(3, bool),
        mask=np.arange(count) < fixed,
        present=np.arange(count) < count - padding,
        confinement=np.array([-np.inf, np.inf], np.float32),
    )
    fields = dict(graph=graph, conditions={}, energy=np.float32(np.nan), forces=np.full((count, 3), np.nan, np.float32))
    fields |= dict(diffuse=np.array(True), index=np.int32(3)) | changes
    return jax.tree.map(jnp.asarray, GraphExample(**fields))


def search(graph, overflow=False):
    n = graph.x.shape[0]
    edges = Neighbors(
        *(jnp.zeros((n, 0), int),) * 2, jnp.zeros((n, 0), bool), jnp.zeros((n, 0), int), jnp.array(overflow)
    )
    return graph._replace(edges=edges)


def model_of(noise=lambda graph: jnp.zeros_like(graph.pos), logits=None, force_field=None):
    def apply(params, graph, levels, conditions, known):
        return Outputs(params * noise(graph), None if logits is None else logits(graph))

    return ScoreModel(jnp.ones(()), apply, force_field)


def test_the_loss_is_the_mean_square_noise_of_free_atoms():
    """A model that says 0 pays the noise itself, whose mean square is 1; fixed atoms and padding do not dilute it."""
    loss = jax.jit(make_example_loss(dataclasses.replace(CONFIG, sigma_max=2.5), model_of(), search, SUMS))
    keys = jax.random.split(jax.random.key(0), 800)
    one = example()

    def small_time(key):
        from agedi.noise.noisers import make_perturb

        noised = make_perturb(CONFIG, SUMS)(key, one.graph, jnp.float32(0.2))
        return jnp.sum(noised.noise**2) / (3 * 3)

    values = jax.jit(jax.vmap(small_time))(keys)
    assert abs(float(values.mean()) - 1.0) < 4.5 * np.sqrt(2 / 9 / 800)
    total, metrics = loss(jnp.ones(()), jax.random.key(0), one)
    assert float(total) == float(metrics["cellpositions"]) > 0


def test_values_of_padding_and_fixed_atoms_do_not_matter():
    def noise(graph):
        still = (~graph.present | graph.mask)[:, None]
        return jnp.where(still, 1e6, 0.1 * graph.pos)

    wild, calm = (
        jax.jit(make_example_loss(CONFIG, model_of(n), search, SUMS))(jnp.ones(()), jax.random.key(1), example())[0]
        for n in (noise, lambda graph: 0.1 * graph.pos)
    )
    assert float(wild) == float(calm)


def test_an_overflowing_search_and_force_field_structures_count_nothing():
    one = example()
    crowded = jax.jit(make_example_loss(CONFIG, model_of(), lambda graph: search(graph, True), SUMS))
    loss, metrics = crowded(jnp.ones(()), jax.random.key(0), one)
    assert (float(loss), float(metrics["overflow"])) == (0.0, 1.0)
    loss, metrics = jax.jit(make_example_loss(CONFIG, model_of(), search, SUMS))(
        jnp.ones(()), jax.random.key(0), one._replace(diffuse=jnp.array(False))
    )
    assert (float(loss), float(metrics["overflow"])) == (0.0, 0.0)


def test_validation_is_the_same_every_time_and_differs_between_structures():
    loss = jax.jit(make_example_loss(CONFIG, model_of(), search, SUMS))
    first, again = (float(loss(jnp.ones(()), None, example())[0]) for _ in range(2))
    other = float(loss(jnp.ones(()), None, example(index=np.int32(4)))[0])
    assert first == again != other


def test_gradients_stay_finite_at_the_smallest_times():
    config = dataclasses.replace(CONFIG, noisers=("CellPositions", "Types"), species=(6, 8), smallest_time=1e-5)
    model = model_of(
        lambda graph: jnp.sin(graph.pos), lambda graph: jnp.stack([graph.pos[:, 0], graph.pos[:, 1]], axis=-1)
    )
    from agedi import loss as module
    from agedi.noise.noisers import make_perturb

    perturb = jax.jit(make_perturb(config, SUMS))
    for t in (1e-5, 1e-3, 1.0):
        noised = perturb(jax.random.key(0), example().graph, jnp.float32(t))
        parts = module.noiser_losses(
            config,
            model.apply(jnp.ones(()), noised.graph, noised.levels, {}, True),
            noised,
            example().graph,
            jnp.float32(t),
        )
        assert np.isfinite(noised.levels).all()
        assert all(np.isfinite(value) for value in parts.values())


def gradient_in_batch(loss, one, name):
    """Value and gradient of a metric, of a batch of one: the network in groups is differentiated only in batches."""
    batch = jax.tree.map(lambda leaf: leaf[None], one)

    def total(params):
        return jax.vmap(loss, in_axes=(None, 0, 0))(params, jax.random.split(jax.random.key(0), 1), batch)[1][name][0]

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.ones(()))
    return float(value), float(gradient)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_types_loss_is_score_entropy(t, rng):
    """sum_k e^(s_k) - r s_x0 + r (log r - 1), times sigma'(t), with s = log r + log p and r = 1 / (e^sigma - 1)."""
    species, logits = (1, 6, 8), rng.normal(size=(7, 3)).astype(np.float32)
    x = rng.choice(species, 7).astype(np.int32)
    absorbed = np.array([True, False, True, True, False, True, False])
    sigma = -np.log(1 - t)
    r = 1 / np.expm1(sigma)
    s = np.log(r) + logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    place = np.searchsorted(species, x)
    entropy = np.exp(s).sum(axis=1) - r * s[np.arange(7), place] + r * (np.log(r) - 1)
    expected = 1 / (1 - t) * entropy[absorbed].sum()
    found = types_loss(jnp.asarray(logits), jnp.asarray(x), jnp.asarray(absorbed), species, jnp.float32(t))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_types_loss_is_zero_when_certain_and_right():
    x = jnp.array([6, 8, 6], jnp.int32)
    logits = jnp.where(x[:, None] == jnp.array([[6, 8]]), 100.0, -100.0)
    assert float(types_loss(logits, x, jnp.array([True, True, True]), (6, 8), jnp.float32(0.3))) == 0.0
    assert float(types_loss(-logits, x, jnp.array([True, True, True]), (6, 8), jnp.float32(0.3))) > 100


LABELS = np.array([[0.0] * 3, [0.0] * 3, [1.0, 2.0, 3.0], [0.5, 0.0, 0.0], [np.nan] * 3, [0.0] * 3], np.float32)
FORCE_FIELD = dataclasses.replace(CONFIG, force_field=ForceFieldConfig())


def test_regressor_losses_by_hand():
    """Five atoms, of which two are fixed and one has no label: energies an atom, forces of two atoms."""
    model = model_of(force_field=lambda params, graph: (jnp.float32(2.0), jnp.zeros_like(graph.pos)))
    one = example(energy=np.float32(1.0), forces=LABELS)
    settings = RegressorLoss(regressor_loss_weight=10.0, force_loss="mse")
    loss, metrics = jax.jit(make_example_loss(FORCE_FIELD, model, search, SUMS, settings))(
        jnp.ones(()), jax.random.key(0), one
    )
    assert float(metrics["energy"]) == pytest.approx((1 / 5) ** 2)
    assert float(metrics["forces"]) == pytest.approx((1 + 4 + 9 + 0.25) / 6)
    assert float(metrics["regressor"]) == pytest.approx(float(metrics["energy"] + metrics["forces"]))
    assert float(loss) == pytest.approx(float(metrics["diffusion"] + 10 * metrics["regressor"]), rel=1e-5)
    assert set(metrics) == set(metric_names(FORCE_FIELD))


def test_unknown_labels_cost_nothing_and_leave_gradients_finite():
    def force_field(params, graph):
        return params * 2.0, params * jnp.ones_like(graph.pos)

    loss = make_example_loss(FORCE_FIELD, model_of(force_field=force_field), search, SUMS)
    value, gradient = gradient_in_batch(loss, example(), "regressor")
    assert value == 0.0
    assert np.isfinite(gradient)


@pytest.mark.parametrize(
    ("name", "expected"), [("mse", [0.0, 1e-4, 4.0]), ("mae", [0.0, 0.01, 2.0]), ("huber", [0.0, 5e-5, 0.01 * 1.995])]
)
def test_distances(name, expected):
    np.testing.assert_allclose(make_distance(name, 0.01)(jnp.array([0.0, -0.01, 2.0])), expected, rtol=1e-4, atol=1e-9)


def test_molecules_need_no_sums():
    config = DiffusionConfig(noisers=("Positions",), sde="vp")
    one = example()
    one = one._replace(graph=one.graph._replace(pbc=jnp.zeros(3, bool)))
    loss, _ = make_example_loss(config, model_of(), search, LatticeSums((0, 0, 0), (0, 0, 0)))(
        jnp.ones(()), jax.random.key(0), one
    )
    assert np.isfinite(loss)


def test_structures_for_the_force_field_alone_leave_the_gradient_finite():
    """Noised between infinite walls their positions are no numbers; what does not count must not show."""
    config = dataclasses.replace(CONFIG, noisers=("ConfinedCellPositions",), confinement=(0.0, 5.0), sigma_max=5.0)
    loss = make_example_loss(config, model_of(lambda graph: jnp.sin(graph.pos)), search, SUMS)
    one = example(diffuse=np.array(False))
    assert gradient_in_batch(loss, one, "diffusion") == (0.0, 0.0)


def test_the_diffusion_loss_is_a_mean_over_what_diffuses():
    halves = [make_example_loss(CONFIG, model_of(), search, SUMS, diffused=share) for share in (1.0, 0.5)]
    whole, half = (float(jax.jit(loss)(jnp.ones(()), jax.random.key(0), example())[0]) for loss in halves)
    assert half == pytest.approx(2 * whole)
