"""Losses against the published ones and hand-worked numbers, corruption by its statistics, and the training step."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from atomformer.checkpoint.published import from_pretrained, to_published
from atomformer.config import AtomformerConfig, LossConfig
from atomformer.data.dataset import atom_counts, from_rows
from atomformer.data.examples import StructureExample, make_take
from atomformer.data.rows import check_row
from atomformer.data.structure import Structure
from atomformer.loss import (
    average_counts,
    choose_masked,
    clean_errors,
    corrupt,
    corrupted_errors,
    expected_masked,
    label_errors,
    make_example_loss,
    metric_names,
    required_heads,
    requirements,
)
from atomformer.network.parameters import init_params
from atomformer.network.transformer import make_apply
from matterform.training.batches import load_batches, make_batch_plan
from matterform.training.mesh import make_mesh
from matterform.training.state import init_state
from matterform.training.step import Batch, make_eval_step, make_train_step, mean_metrics

pytestmark = pytest.mark.usefixtures("quick")

NAN = float("nan")
S2EF = LossConfig(formation_energy=1.0, forces=1.0)
COUNTS = (4, 2, 3, 4)
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def dataset(seed=0, copies=1):
    """Small molecules; some lack an energy or forces, some atoms are fixed."""
    rng, rows = np.random.default_rng(seed), []
    for i, count in enumerate(COUNTS * copies):
        row = {
            "input_ids": rng.integers(1, 10, count),
            "coords": rng.normal(0, 1.5, (count, 3)),
            "relaxed_coords": rng.normal(0, 1.5, (count, 3)),
            "formation_energy": rng.normal(),
            "has_formation_energy": i % 4 != 1,
            "total_energy": rng.normal(),
            "fixed": np.arange(count) == 1,
            "labels": [rng.normal(), rng.normal() if i % 4 else NAN],
        }
        rows.append(check_row(row | ({"forces": rng.normal(size=(count, 3))} if i % 4 != 2 else {})))
    return from_rows(rows)


def example(n=4, real=3, fixed=(), index=0, seed=0, **targets) -> Any:
    """One padded structure; targets as given."""
    rng = np.random.default_rng(seed)
    tokens = np.where(np.arange(n) < real, rng.integers(1, 10, n), 119).astype(np.int32)
    structure = Structure(tokens, rng.normal(size=(n, 3)).astype(np.float32), np.arange(n) < real)
    held = np.isin(np.arange(n), fixed)
    targets = {name: np.asarray(value, np.float32) for name, value in targets.items()}
    return jax.tree.map(jnp.asarray, StructureExample(structure, targets, held, np.int32(index)))


def mean_loss(config, loss, data, labels=()) -> Any:
    """The mean of the example losses over a whole data set as one batch, as a function of the parameters."""
    example_loss = make_example_loss(config, loss, average_counts(data, loss, labels))
    batch = make_take(data, config, requirements(loss, labels))(
        np.arange(len(atom_counts(data))), int(atom_counts(data).max())
    )

    def function(params):
        values, metrics = jax.vmap(example_loss, in_axes=(None, None, 0))(params, None, batch)
        return values.mean(), {name: value.mean() for name, value in metrics.items()}

    return function


def test_loss_and_gradient_norms_are_the_published_ones(golden_dir):
    want = dict(np.load(golden_dir / "atomformer" / "s2ef.npz"))
    params, config, _ = from_pretrained(golden_dir / "atomformer")
    rows = []
    for i, mask in enumerate(want["attention_mask"].astype(bool)):
        columns = {"input_ids": want["input_ids"], "coords": want["coords"], "forces": want["forces"]}
        row = {name: column[i][mask] for name, column in columns.items()}
        energies = {name: want[name][i] for name in ("formation_energy", "has_formation_energy")}
        rows.append(check_row(row | energies))
    function = jax.value_and_grad(mean_loss(config, S2EF, from_rows(rows)), has_aux=True)
    (value, metrics), slopes = jax.jit(function, compiler_options=FAST)(params)
    np.testing.assert_allclose(value, want["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["formation_energy"] + metrics["forces"], want["loss"], rtol=1e-5)
    norms = {name: np.linalg.norm(slope) for name, slope in to_published(slopes, config).items()}
    found = np.array([norms[name] for name in want["grad_names"]])
    # Those of k_norm's and the pair bias's offsets are 0 but for rounding: a softmax ignores constants.
    np.testing.assert_allclose(found, want["grad_norms"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("error", ["l1", "l2"])
def test_the_mean_over_the_data_is_the_mean_of_all_known_values(tiny_config, lively, error):
    """Of energies that are there, of components of forces and of movable atoms, and of labels that are there."""
    heads = ("formation_energy", "forces", "coords", "classification")
    config = dataclasses.replace(tiny_config, heads=heads, num_labels=2)
    loss = LossConfig(formation_energy=1.0, forces=2.0, relaxed_coords=3.0, labels=0.5, error=error)
    data, params = dataset(), lively(config)
    value, metrics = jax.jit(mean_loss(config, loss, data, ("labels",)), compiler_options=FAST)(params)
    batch = make_take(data, config, requirements(loss, ("labels",)))(np.arange(4), 4)
    apply = jax.jit(jax.vmap(make_apply(config), in_axes=(None, None, 0)), compiler_options=FAST)
    found, targets = apply(params, None, batch.structure), batch.targets
    movable = batch.structure.mask & ~batch.fixed
    errors = {
        "formation_energy": found.formation_energy - targets["formation_energy"],
        "forces": found.forces - targets["forces"],
        "relaxed_coords": (found.coords - targets["relaxed_coords"])[movable],
        "labels": found.labels - targets["labels"],
    }
    means = {name: np.nanmean(np.abs(np.asarray(x, np.float64))) for name, x in errors.items()}
    for name, expected in means.items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-5, err_msg=name)
    power = {"l1": 1, "l2": 2}[error]
    total = sum(
        getattr(loss, name) * np.nanmean(np.abs(np.asarray(x, np.float64)) ** power) for name, x in errors.items()
    )
    np.testing.assert_allclose(value, total, rtol=1e-5)


def test_counts_are_those_of_known_values():
    loss = LossConfig(formation_energy=1.0, forces=1.0, labels=1.0, masked=1.0, denoising=1.0, mask_probability=0.25)
    counts = average_counts(dataset(), loss, ("labels",))
    assert counts == {
        "formation_energy": 3 / 4,
        "forces": 3 * (4 + 2 + 4) / 4,
        "labels": (1 + 2 + 2 + 2) / 4,
        "masked": 0.25 * 13 / 4,
        "denoising": 3 * (13 - 4) / 4,
    }
    assert average_counts(dataset(), LossConfig(relaxed_coords=1.0)) == {"relaxed_coords": 3 * (13 - 4) / 4}


def test_a_term_without_any_value_is_refused():
    data = from_rows([check_row({"input_ids": [1], "coords": [[0, 0, 0]], "total_energy": 1.0})])
    data.structures["total_energy"][:] = NAN
    with pytest.raises(ValueError, match="no structure of the data has a value for total_energy; leave that term out"):
        average_counts(data, LossConfig(total_energy=1.0))


def known_values(errors) -> list[float]:
    """The errors that count."""
    shape = np.broadcast_shapes(errors.values.shape, errors.known.shape)
    return np.broadcast_to(errors.values, shape)[np.broadcast_to(errors.known, shape)].tolist()


def test_errors_are_those_worked_by_hand():
    loss, config = LossConfig(forces=1.0), AtomformerConfig()
    one = example(4, 3, fixed=(1,), formation_energy=-2.0, total_energy=NAN, forces=np.ones((4, 3)))
    one.targets["forces"] = one.targets["forces"].at[2, 0].set(NAN).at[3].set(NAN)
    one.targets["relaxed_coords"] = jnp.zeros((4, 3)).at[3].set(NAN)
    outputs = SimpleNamespace(
        formation_energy=jnp.float32(1.0),
        total_energy=jnp.float32(1.0),
        forces=jnp.zeros((4, 3)),
        coords=2 * jnp.ones((4, 3)),
    )

    def values(name, loss=loss):
        return known_values(clean_errors(name, outputs, one, config, loss))

    assert values("formation_energy") == [3.0]
    assert values("formation_energy", dataclasses.replace(loss, errors_per_atom=True)) == [1.0]
    assert values("total_energy") == []
    assert values("forces") == [1.0] * 8  # three atoms' components, one of them missing; fixed atoms have forces
    assert values("relaxed_coords") == [2.0] * 6  # atoms 0 and 2


def test_label_losses_are_those_of_numpy_and_scipy(rng):
    config = AtomformerConfig(heads=("classification",), num_labels=5)
    outputs, known = rng.normal(0, 3, 5).astype(np.float32), np.array([True, True, False, True, True])
    binary = np.array([1, 0, 0, 1, 0], np.float32)
    found = label_errors(
        jnp.asarray(outputs), jnp.asarray(binary), jnp.asarray(known), dataclasses.replace(config, problem="binary")
    )
    probability = scipy.special.expit(outputs.astype(np.float64))
    entropy = -np.log(np.where(binary == 1, probability, 1 - probability))
    np.testing.assert_allclose(found.values, entropy, rtol=1e-5)
    np.testing.assert_array_equal(found.right, (probability > 0.5) == (binary == 1))
    np.testing.assert_array_equal(found.known, known)
    for label in range(5):
        one = jnp.array([float(label)]), jnp.array([True])
        found = label_errors(jnp.asarray(outputs), *one, dataclasses.replace(config, problem="multiclass"))
        np.testing.assert_allclose(
            found.values, -np.log(scipy.special.softmax(outputs.astype(np.float64))[label]), rtol=1e-5
        )
        assert found.right.tolist() == [label == outputs.argmax()]
    scaled = dataclasses.replace(config, label_scale=(2.0,) * 5, label_mean=(0.0,) * 5)
    found = label_errors(jnp.asarray(outputs), jnp.asarray(binary), jnp.asarray(known), scaled)
    np.testing.assert_allclose(found.values, np.abs(outputs - binary) / 2, rtol=1e-6)


def test_masked_and_denoised_errors_are_those_worked_by_hand(rng):
    one = example(4, 3, fixed=(0,))
    logits = rng.normal(size=(4, 123)).astype(np.float32)
    hidden = jnp.array([False, True, True, False])
    outputs = SimpleNamespace(logits=jnp.asarray(logits), coords=one.structure.positions + 0.5)
    masked = corrupted_errors("masked", outputs, one, hidden)
    log_probs = np.log(scipy.special.softmax(logits.astype(np.float64), axis=1))
    tokens = np.asarray(one.structure.tokens)
    np.testing.assert_allclose(known_values(masked), -log_probs[[1, 2], tokens[1:3]], rtol=1e-5)
    np.testing.assert_array_equal(masked.right, logits.argmax(1) == tokens)
    np.testing.assert_allclose(known_values(corrupted_errors("denoising", outputs, one, hidden)), [0.5] * 6, rtol=1e-5)


@pytest.mark.parametrize("conservative", [False, True])
def test_missing_targets_leave_gradients_finite(tiny_config, lively, conservative):
    error = "l1" if conservative else "l2"
    loss = LossConfig(total_energy=1.0, forces=1.0, relaxed_coords=1.0, masked=1.0, error=error)
    config = dataclasses.replace(tiny_config, conservative=conservative, heads=required_heads(loss, conservative))
    params = lively(config)
    counts = dict.fromkeys(loss.active, 1.0)
    function = jax.grad(lambda params, one: make_example_loss(config, loss, counts)(params, None, one)[0])
    gradient = jax.jit(function, compiler_options=FAST)
    missing = {"total_energy": NAN, "forces": np.full((4, 3), NAN), "relaxed_coords": np.full((4, 3), NAN)}
    slopes = gradient(params, example(**missing))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    # Without targets only the masked atoms teach.
    trained = {
        name for name, leaves in slopes["heads"].items() if any(np.any(leaf) for leaf in jax.tree.leaves(leaves))
    }
    assert trained == {"masked"}
    partly = gradient(params, example(**missing | {"forces": np.ones((4, 3)) * [1, NAN, 1]}))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(partly))


def draws(probability, mask, count=20_000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: choose_masked(key, jnp.asarray(mask), probability)))(keys))


@pytest.mark.parametrize("probability", [0.15, 1.0])
def test_atoms_are_masked_independently_with_the_probability(probability):
    mask = np.arange(12) < 10
    chosen = draws(probability, mask)
    assert not chosen[:, 10:].any()
    share = chosen[:, :10].mean(0)
    assert np.abs(share - probability).max() <= 4.5 * (probability * (1 - probability) / len(chosen)) ** 0.5
    pairs = np.cov(chosen[:, :10].T.astype(float))
    variance = probability * (1 - probability)
    assert np.abs(pairs - variance * np.eye(10)).max() <= 6 * max(variance, 1e-9) / len(chosen) ** 0.5


def test_shares_follow_the_cosine():
    """The share of masked atoms is cos(pi u / 2), whose distribution function is 1 - 2 arccos(s) / pi, rounded."""
    n = 200
    mask = np.arange(n + 5) < n
    chosen = draws("cosine", mask)
    assert not chosen[:, n:].any()
    numbers = chosen.sum(1)
    assert numbers.min() >= 1
    at_most = (np.arange(n) + 0.5) / n
    expected = 1 - 2 * np.arccos(at_most) / np.pi
    found = (numbers[:, None] <= np.arange(n)).mean(0)
    assert np.abs(found - expected)[1:].max() < 4.5 * 0.5 / len(numbers) ** 0.5
    error = 0.31 / len(numbers) ** 0.5  # the standard deviation of the share is sqrt(1/2 - 4 / pi²)
    assert abs(numbers.mean() / n - 2 / np.pi) < 4.5 * error
    share = chosen[:, :n].mean(0)  # every atom alike
    assert np.abs(share - 2 / np.pi).max() < 4.5 * (2 / np.pi * (1 - 2 / np.pi) / len(chosen)) ** 0.5


@pytest.mark.parametrize("real", [1, 2, 3, 6])
def test_small_molecules_have_at_least_one_masked_atom(real):
    chosen = draws("cosine", np.arange(8) < real)
    numbers = chosen[:, :real].sum(1)
    assert numbers.min() == 1
    assert not chosen[:, real:].any()
    # The mean that the loss divides by knows of rounding and of the one.
    error = numbers.std() / len(numbers) ** 0.5
    assert abs(numbers.mean() - expected_masked(real, "cosine")) <= 4.5 * error


@pytest.mark.parametrize("problem", ["binary", "multiclass"])
def test_means_over_the_data_of_classes_and_masked_atoms(tiny_config, lively, problem):
    columns = ("class",) if problem == "multiclass" else ("class", "other")
    config = dataclasses.replace(tiny_config, heads=("classification", "masked"), problem=problem, num_labels=2)
    loss = LossConfig(labels=1.0, masked=0.5, mask_probability=1.0)
    data, params = dataset(), lively(config)
    data.structures["class"], data.structures["other"] = np.array([0, 1, NAN, 1]), np.array([1, NAN, 0, 1.0])
    value, metrics = jax.jit(mean_loss(config, loss, data, columns), compiler_options=FAST)(params)
    structure = make_take(data, config, requirements(loss, columns))(np.arange(4), 4).structure
    apply = jax.jit(jax.vmap(make_apply(config), in_axes=(None, None, 0)), compiler_options=FAST)
    found = np.asarray(apply(params, None, structure).labels, np.float64)
    if problem == "binary":
        targets = np.stack([data.structures[name] for name in columns], axis=1)
        entropy = np.log1p(np.exp(-found)) * targets + np.log1p(np.exp(found)) * (1 - targets)
        right = np.where(np.isnan(targets), NAN, (found > 0) == (targets == 1))
    else:
        entropy = -np.log(scipy.special.softmax(found, axis=1))[[0, 1, 3], [0, 1, 1]]
        right = found.argmax(1)[[0, 1, 3]] == [0, 1, 1]
    covered = apply(params, None, structure._replace(tokens=np.where(structure.mask, 0, structure.tokens)))
    log_probs = np.log(scipy.special.softmax(np.asarray(covered.logits, np.float64), axis=-1))[structure.mask]
    tokens = structure.tokens[structure.mask]
    expected = {
        "labels": np.nanmean(entropy),
        "labels_accuracy": np.nanmean(right),
        "masked": -log_probs[np.arange(len(tokens)), tokens].mean(),
        "masked_accuracy": (log_probs.argmax(1) == tokens).mean(),
    }
    assert {name: float(mean) for name, mean in metrics.items()} == pytest.approx(expected, rel=1e-4)
    assert float(value) == pytest.approx(expected["labels"] + 0.5 * expected["masked"], rel=1e-4)
    assert set(metrics) == set(metric_names(config, loss))


def test_noise_moves_what_is_not_fixed_by_its_standard_deviation():
    loss = LossConfig(denoising=1.0, masked=1.0, mask_probability=0.5, noise_ang=0.2)
    one = example(60, 50, fixed=(3, 7))
    keys = jax.random.split(jax.random.key(0), 2000)
    structure, hidden = jax.jit(jax.vmap(lambda key: corrupt(key, one, loss)))(keys)
    noise = np.asarray(structure.positions) - np.asarray(one.structure.positions)
    still = np.isin(np.arange(60), (3, 7, *range(50, 60)))
    assert (noise[:, still] == 0).all()
    moved = noise[:, ~still]
    assert abs(moved.mean()) < 4.5 * 0.2 / moved.size**0.5
    assert abs(moved.std() - 0.2) < 4.5 * 0.2 / (2 * moved.size) ** 0.5
    assert scipy.stats.kstest(moved.ravel()[:5000] / 0.2, "norm").pvalue > 1e-5
    np.testing.assert_array_equal(structure.tokens, np.where(hidden, 0, one.structure.tokens))
    # Which atoms are masked says nothing about the noise.
    seen = np.asarray(hidden)[:, ~still]
    assert abs(moved[seen].std() - moved[~seen].std()) < 0.2 * 4.5 * (2 / moved.size) ** 0.5


def test_a_term_that_is_off_corrupts_nothing():
    one, key = example(), jax.random.key(0)
    structure, hidden = corrupt(key, one, LossConfig(denoising=1.0))
    assert not hidden.any()
    np.testing.assert_array_equal(structure.tokens, one.structure.tokens)
    structure, hidden = corrupt(key, one, LossConfig(masked=1.0, mask_probability=1.0))
    assert hidden.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(structure.positions, one.structure.positions)


def test_noise_in_validation_depends_on_the_structures_number_alone(tiny_config, lively):
    loss = LossConfig(denoising=1.0)
    config = dataclasses.replace(tiny_config, heads=("coords",))
    example_loss, params = make_example_loss(config, loss, {"denoising": 1.0}), lively(config)
    errors = jax.jit(jax.vmap(lambda one: example_loss(params, None, one)[0]), compiler_options=FAST)
    values = errors(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(example(index=i) for i in (3, 5, 3))))
    assert values[0] == values[2] != values[1]


NAMES = ("formation_energy", "total_energy", "forces", "labels", "masked", "masked_accuracy", "denoising")
EVERYTHING = LossConfig(formation_energy=1.0, total_energy=1.0, forces=1.0, labels=1.0, masked=1.0, denoising=1.0)


def training(config: AtomformerConfig, data) -> tuple[AtomformerConfig, Any, Any]:
    """A network with a head for every term, its loss and the data's `take`."""
    config = dataclasses.replace(
        config, heads=required_heads(EVERYTHING, conservative=False), num_labels=2, dropout=0.1
    )
    example_loss = make_example_loss(config, EVERYTHING, average_counts(data, EVERYTHING, ("labels",)))
    return config, example_loss, make_take(data, config, requirements(EVERYTHING, ("labels",)))


def test_validation_does_not_depend_on_the_order_of_batches(tiny_config, lively):
    data = dataset(copies=2)
    config, example_loss, take = training(tiny_config, data)
    params, evaluate = lively(config), make_eval_step(example_loss, make_mesh())
    order = np.random.default_rng(0).permutation(8)
    found = [
        mean_metrics(evaluate(params, Batch(take(part, 4), np.ones(4, np.float32))) for part in np.split(indices, 2))
        for indices in (np.arange(8), order)
    ]
    assert found[0].keys() == {"loss", *NAMES} == {"loss", *metric_names(config, EVERYTHING)}
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5), name
    assert all(np.isfinite(value) for value in found[0].values())


def train_some_steps(config: AtomformerConfig) -> dict[str, Any]:
    """Six steps and then an evaluation, over all devices there are."""
    data, mesh, optimizer = dataset(copies=2), make_mesh(), optax.sgd(1e-2)
    config, example_loss, take = training(config, data)
    traces = []

    def counted(params, key, one):
        traces.append(one.structure.tokens.shape[0])  # runs only while tracing
        return example_loss(params, key, one)

    step, evaluate = make_train_step(counted, optimizer, jax.random.key(1), mesh), make_eval_step(example_loss, mesh)
    state = init_state(init_params(jax.random.key(0), config), optimizer, mesh)
    plan, metrics = make_batch_plan(atom_counts(data), 4, (4,), seed=0), []
    for batch in load_batches(plan, take, 0, 6):
        state, found = step(state, batch)
        metrics.append({name: float(value) for name, value in found.items()})
    validation = mean_metrics([evaluate(state.params, Batch(take(np.arange(8), 4), np.ones(8, np.float32)))])
    return {"metrics": metrics, "validation": validation, "traces": traces, "devices": mesh.size}


@pytest.fixture(scope="module")
def one_device(tiny_config):
    """What one device finds; compiled in half the time, to run slower."""
    former = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        return train_some_steps(tiny_config)
    finally:
        jax.config.update("jax_disable_most_optimizations", former)


def test_a_step_is_compiled_once(one_device):
    assert one_device["traces"] == [4]
    assert all(row["nonfinite"] == 0 for row in one_device["metrics"])
    assert one_device["metrics"][0].keys() == {"loss", "grad_norm", "nonfinite", *NAMES}


@pytest.mark.slow
def test_four_devices_train_as_one(one_device):
    code = f"""
import importlib.util, json, sys
from atomformer.config import AtomformerConfig
spec = importlib.util.spec_from_file_location("losses", {__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.jax.config.update("jax_default_matmul_precision", "highest")
print(json.dumps(module.train_some_steps(AtomformerConfig(dim=32, num_heads=2, depth=2, k=16))))
"""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert (one_device["devices"], found["devices"]) == (1, 4)
    for row, expected in zip(found["metrics"], one_device["metrics"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert found["validation"] == pytest.approx(one_device["validation"], rel=1e-5, abs=1e-6)


def test_a_model_trains_what_it_is_asked_for(tiny_config):
    def of(conservative=False, **terms):
        return required_heads(LossConfig(**terms), conservative)

    assert of(formation_energy=1.0, forces=1.0) == ("formation_energy", "forces")
    assert of(total_energy=1.0, forces=1.0) == ("total_energy", "total_forces")
    assert of(forces=1.0) == ("forces",)
    assert of(masked=1.0, denoising=1.0) == ("masked", "coords")
    assert of(relaxed_coords=1.0, total_energy=1.0) == ("total_energy", "coords")
    assert of(labels=1.0) == ("classification",)
    assert of(conservative=True, forces=1.0) == ("total_energy", "forces")
    assert of(conservative=True, denoising=1.0) == ("total_energy", "coords")
    assert of(conservative=True, formation_energy=1.0, forces=1.0) == ("formation_energy", "forces")
    assert of(conservative=True, labels=1.0) == ("classification",)
    loss = LossConfig(forces=1.0, labels=1.0, masked=1.0)
    assert requirements(loss, ("gap",)) == (("forces",), ("gap",))
    assert requirements(LossConfig(forces=1.0), ("gap",)) == (("forces",), ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "at least one of formation_energy, .*, denoising must be positive"),
        ({"forces": -1.0}, "forces is a weight, at least 0; got -1.0"),
        ({"relaxed_coords": 1.0, "denoising": 1.0}, "both train the coordinate head; choose one"),
        ({"masked": 1.0, "mask_probability": 0.0}, r"mask_probability must lie in \(0, 1\], or be cosine; got 0.0"),
        ({"masked": 1.0, "mask_probability": 1.5}, "mask_probability must lie in"),
        ({"denoising": 1.0, "noise_ang": 0.0}, "noise_ang must be positive; got 0.0"),
    ],
)
def test_impossible_losses_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        LossConfig(**settings)
    assert "\n" not in str(error.value)
