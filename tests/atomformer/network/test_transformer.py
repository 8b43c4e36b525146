"""The network against the published model's numbers, against its plain form, and its laws."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atomformer.checkpoint.published import from_pretrained
from atomformer.config import AtomformerConfig
from atomformer.data.structure import Structure
from atomformer.data.vocabulary import GRAPH
from atomformer.network import attention_bias as pairs
from atomformer.network.parameters import fold_params
from atomformer.network.transformer import embed_tokens, make_apply
from benchmarks.baselines import atomformer as plain

COUNTS = (7, 5, 1, 6)


@functools.cache
def compiled(config: AtomformerConfig) -> Any:
    """The network over a batch; one compilation for each shape serves all tests."""
    return quickly(jax.vmap(make_apply(config), in_axes=(None, None, 0)))


def quickly(function) -> Any:
    """Compiled in half the time, to run slower."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def published_batch(values) -> Structure:
    """Golden inputs, padded as they are."""
    types = values.get("token_type_ids")
    return Structure(
        values["input_ids"].astype(np.int32),
        values["coords"],
        values["attention_mask"].astype(bool),
        None if types is None else types.astype(np.int32),
    )


def assert_same(found, expected, mask, tolerance=1e-6):
    """Equal outputs of real rows, relative to the largest."""
    for name in expected._fields:
        got, want = getattr(found, name), getattr(expected, name)
        assert (got is None) == (want is None), name
        if want is not None:
            rows = {"hidden": np.pad(mask, ((0, 0), (1, 0)), constant_values=True)}.get(name, mask)
            if got.ndim > 1 and name != "labels":
                got, want = np.asarray(got)[:, : rows.shape[1]][rows], np.asarray(want)[:, : rows.shape[1]][rows]
            np.testing.assert_allclose(got, want, atol=tolerance * max(1, np.abs(want).max()), err_msg=name)


def test_outputs_are_the_published_ones(golden_dir):
    want = dict(np.load(golden_dir / "atomformer" / "s2ef.npz"))
    params, config, _ = from_pretrained(golden_dir / "atomformer")
    found = compiled(config)(params, None, published_batch(want))
    for name, got in {
        "hidden": found.hidden,
        "energy_pred": found.formation_energy,
        "forces_pred": found.forces,
    }.items():
        np.testing.assert_allclose(got, want[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_labels_are_the_published_ones(golden_dir):
    want = dict(np.load(golden_dir / "atomformer" / "classifier.npz"))
    params, config, _ = from_pretrained(golden_dir / "atomformer" / "classifier.safetensors")
    found = compiled(config)(params, None, published_batch(want))
    np.testing.assert_allclose(found.labels, want["pred"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.abs(found.labels - want["labels"]).mean(), want["loss"], rtol=1e-4)


def test_outputs_and_gradients_are_those_of_the_plain_form(tiny_config, lively, molecules):
    config = dataclasses.replace(tiny_config, heads=("formation_energy", "forces", "classification"), num_labels=3)
    params, batch = lively(config), molecules(COUNTS)
    rng = np.random.default_rng(1)
    batch = batch._replace(token_types=rng.integers(0, 3, batch.tokens.shape).astype(np.int32))

    def probe(found):
        real = jnp.concatenate([jnp.ones((len(COUNTS), 1), bool), batch.mask], axis=1)
        hidden = jnp.where(real[..., None], jnp.sin(found.hidden), 0.0)
        forces = jnp.where(batch.mask[..., None], found.forces, 0.0)
        value = jnp.sum(hidden) + jnp.sum(forces**2) + jnp.sum(found.formation_energy**2) + jnp.sum(found.labels**3)
        return value, found

    apply = jax.vmap(make_apply(config), in_axes=(None, None, 0))
    both: list[Any] = [
        quickly(jax.value_and_grad(lambda params: probe(apply(params, None, batch)), has_aux=True)),
        quickly(jax.value_and_grad(lambda params: probe(plain.forward(params, config, batch)), has_aux=True)),
    ]
    ((_, found), slopes), ((_, expected), plain_slopes) = (f(params) for f in both)
    assert_same(found, found._replace(**expected._asdict()), batch.mask, 1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain_slopes))
    for (path, got), want in zip(jax.tree.leaves_with_path(slopes), jax.tree.leaves(plain_slopes), strict=True):
        # Some slopes are zero but for rounding, as a softmax ignores constants.
        atol = 1e-4 * np.abs(want).max() + 1e-6 * largest
        np.testing.assert_allclose(got, want, atol=atol, err_msg=jax.tree_util.keystr(path))
        if jax.tree_util.keystr(path) != "['encoder']['metadata']":
            assert np.abs(want).max() > 0, path


def test_conservative_forces_and_their_training_are_those_of_the_plain_form(tiny_config, lively, molecules):
    config = dataclasses.replace(tiny_config, conservative=True)
    params, batch = lively(config), molecules((5, 3))
    apply = jax.vmap(make_apply(config), in_axes=(None, None, 0))

    def plain_forces(params):
        def energy(positions):
            return plain.forward(params, tiny_config, batch._replace(positions=positions)).formation_energy.sum()

        return -jax.grad(energy)(jnp.asarray(batch.positions))

    def training(forces) -> Any:
        def loss(params):
            found = forces(params)
            return jnp.sum(jnp.where(batch.mask[..., None], jnp.sin(found), 0.0)), found

        return quickly(jax.value_and_grad(loss, has_aux=True))

    with_plain_head = params | {"heads": params["heads"] | {"forces": lively(tiny_config)["heads"]["forces"]}}
    ((_, found), slopes), ((_, expected), plain_slopes) = (
        training(lambda params: apply(params, None, batch).forces)(params),
        training(plain_forces)(with_plain_head),
    )
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert relative_error(slopes["encoder"], plain_slopes["encoder"]) < 1e-4
    assert relative_error(slopes["heads"], {"formation_energy": plain_slopes["heads"]["formation_energy"]}) < 1e-4


def test_folded_parameters_predict_the_same(tiny_config, lively, molecules):
    params, batch = lively(tiny_config), molecules(COUNTS)
    folded = fold_params(params, tiny_config)
    assert folded["encoder"]["blocks"]["out_proj"].shape == (2, 160, 32)
    expected = compiled(tiny_config)(params, None, batch)
    assert_same(compiled(tiny_config)(folded, None, batch), expected, batch.mask, 1e-5)
    again = fold_params(folded, tiny_config)
    jax.tree.map(np.testing.assert_array_equal, again, folded)


def loss_of(config, batch) -> Any:
    apply = jax.vmap(make_apply(config), in_axes=(None, None, 0))

    def loss(params, key=None):
        found = apply(params, key, batch)
        return jnp.sum(found.formation_energy**2) + jnp.sum(jnp.where(batch.mask[..., None], found.forces, 0.0) ** 2)

    return loss


def relative_error(found, expected) -> float:
    """The norm of the difference of two trees over the norm of the second."""
    squares = [
        (np.sum((np.float64(a) - np.float64(b)) ** 2), np.sum(np.float64(b) ** 2))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    ]
    error, size = np.sum(squares, axis=0)
    return float(np.sqrt(error / size))


def test_checkpointing_changes_no_gradient(tiny_config, lively, molecules):
    config = dataclasses.replace(tiny_config, dropout=0.3)
    params, batch, key = lively(config), molecules(COUNTS), jax.random.key(1)
    slopes = [
        quickly(jax.grad(loss_of(dataclasses.replace(config, gradient_checkpointing=on), batch)))(params, key)
        for on in (True, False)
    ]
    assert relative_error(*slopes) < 1e-5


def test_bfloat16_stays_close_and_leaves_parameters_alone(tiny_config, lively, molecules):
    params, batch = lively(tiny_config), molecules(COUNTS)
    half = dataclasses.replace(tiny_config, compute_dtype="bfloat16")
    found, expected = (compiled(config)(params, None, batch) for config in (half, tiny_config))
    assert found.hidden.dtype == jnp.bfloat16
    assert found.forces.dtype == found.formation_energy.dtype == jnp.float32
    # bfloat16 has 8 bits: one rounding errs by up to 0.4 %, two blocks add up some of them.
    error = relative_error(np.asarray(found.hidden, np.float32)[:, 0], expected.hidden[:, 0])
    assert 1e-4 < error < 0.02
    slopes, plain_slopes = (quickly(jax.grad(loss_of(config, batch)))(params) for config in (half, tiny_config))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(slopes))
    assert 1e-4 < relative_error(slopes, plain_slopes) < 0.05


def test_dropout_needs_a_key_and_keeps_the_mean(tiny_config, lively, molecules):
    config = dataclasses.replace(tiny_config, dropout=0.25, depth=1)
    params = lively(config)
    one = jax.tree.map(lambda x: jnp.asarray(x[0]), molecules((3,)))
    apply, keys = make_apply(config), jax.random.split(jax.random.key(0), 4000)
    without = quickly(make_apply(dataclasses.replace(config, dropout=0.0)))(params, keys[0], one).hidden
    np.testing.assert_allclose(quickly(apply)(params, None, one).hidden, without, atol=1e-5)
    hidden = np.asarray(jax.jit(jax.vmap(lambda key: apply(params, key, one).hidden))(keys), np.float64)
    # After one block the update enters linearly, so its mean is the update without dropout.
    assert np.abs(hidden.mean(0) - without).max() < 4.5 * (hidden.std(0) / len(keys) ** 0.5).max()
    tokens = jnp.concatenate([jnp.array([GRAPH]), one.tokens])
    dropped = np.isclose(hidden, embed_tokens(params["encoder"], tokens, None), rtol=0, atol=1e-6)
    assert abs(dropped.mean() - 0.25) < 4.5 * (0.25 * 0.75 / dropped.size) ** 0.5


def test_no_block_keeps_the_pair_embedding(lively, molecules):
    """What the backward pass keeps, and the memory of a compiled gradient, do not grow with depth times n x n x k."""
    n, k = 30, 256
    batch = molecules((n,))
    embedding = (n + 1) ** 2 * k

    def config(depth: int) -> AtomformerConfig:
        return AtomformerConfig(dim=32, num_heads=2, depth=depth, k=k)

    def ours(depth: int):
        apply = jax.vmap(make_apply(config(depth)), in_axes=(None, None, 0))
        return lambda params: apply(params, None, batch).formation_energy.sum()

    def kept(depth: int, function) -> list[int]:
        residuals = jax.eval_shape(lambda params: jax.vjp(function, params)[1], lively(config(depth)))
        return [leaf.size for leaf in jax.tree.leaves(residuals)]

    assert max(kept(4, ours(4))) < embedding / 2
    theirs = kept(4, lambda params: plain.forward(params, config(4), batch).formation_energy)
    assert sum(size >= embedding for size in theirs) >= 4

    def temporary_bytes(depth: int) -> int:
        lowered = quickly(jax.grad(ours(depth))).lower(lively(config(depth)))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert (temporary_bytes(6) - temporary_bytes(2)) / 4 < 4 * embedding / 4


@pytest.fixture(scope="module", params=["direct", "conservative"])
def config(request, tiny_config):
    return dataclasses.replace(tiny_config, conservative=request.param == "conservative")


def test_padding_changes_nothing(config, lively, molecules):
    params, batch, longer = lively(config), molecules(COUNTS), molecules(COUNTS, length=12)
    garbage = np.where(longer.mask[..., None], longer.positions, -3.7e3).astype(np.float32)
    longer = longer._replace(positions=garbage, tokens=np.where(longer.mask, longer.tokens, 7))
    found, expected = (compiled(config)(params, None, b) for b in (longer, batch))
    assert_same(found, expected, batch.mask)


def test_companions_change_nothing(config, lively, molecules):
    params, batch = lively(config), molecules(COUNTS)
    expected = compiled(config)(params, None, batch)
    for i in range(len(COUNTS)):
        copies, want = jax.tree.map(lambda x, i=i: np.stack([x[i]] * len(COUNTS)), (batch, expected))
        assert_same(compiled(config)(params, None, copies), want, copies.mask)


def test_working_in_parts_changes_nothing(tiny_config, lively, molecules, monkeypatch):
    params, batch = lively(tiny_config), molecules(COUNTS)
    expected = compiled(tiny_config)(params, None, batch)
    monkeypatch.setattr(pairs, "FORWARD_PAIRS", 20)
    monkeypatch.setattr(pairs, "BACKWARD_PAIRS", 20)
    found = quickly(jax.vmap(make_apply(tiny_config), in_axes=(None, None, 0)))(params, None, batch)
    assert_same(found, expected, batch.mask)


def random_motion(rng, reflect: bool) -> tuple[np.ndarray, np.ndarray]:
    """A rotation, or a rotation and reflection, and a translation."""
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return (q * np.linalg.det(q) * (-1 if reflect else 1)).astype(np.float32), rng.normal(0, 3, 3).astype(np.float32)


@pytest.mark.parametrize("reflect", [False, True])
def test_energies_know_no_place_and_orientation(config, lively, molecules, rng, reflect):
    params, batch = lively(config), molecules(COUNTS)
    q, shift = random_motion(rng, reflect)
    assert np.linalg.det(q) == pytest.approx(-1 if reflect else 1, abs=1e-5)
    moved = batch._replace(positions=batch.positions @ q + shift)
    found, expected = (compiled(config)(params, None, b) for b in (moved, batch))
    np.testing.assert_allclose(found.formation_energy, expected.formation_energy, atol=2e-5)
    if config.conservative:
        for i, count in enumerate(COUNTS):
            scale = np.abs(expected.forces[i]).max()
            np.testing.assert_allclose(
                found.forces[i, :count], expected.forces[i, :count] @ q, atol=1e-4 * max(scale, 1)
            )
            np.testing.assert_allclose(expected.forces[i, :count].sum(0), np.zeros(3), atol=1e-5 * max(scale, 1))
        assert np.abs(expected.forces[0]).max() > 1e-2


def test_the_order_of_atoms_does_not_matter(config, lively, molecules, rng):
    params, batch = lively(config), molecules(COUNTS)
    order = rng.permutation(7)
    turned = jax.tree.map(lambda x: x[:, order], batch)
    found, expected = (compiled(config)(params, None, b) for b in (turned, batch))
    rows = np.concatenate([[0], 1 + order])
    want = expected._replace(forces=expected.forces[:, order], hidden=expected.hidden[:, rows])
    assert_same(found, want, turned.mask, 1e-5)


def test_conservative_forces_are_minus_the_slope_of_the_energy(tiny_config, lively, molecules, in_double):
    config = in_double(dataclasses.replace(tiny_config, conservative=True))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), lively(tiny_config))
        structure = jax.tree.map(lambda x: x[0], molecules((4,), 5))
        structure = structure._replace(positions=jnp.asarray(structure.positions, jnp.float64))
        apply = quickly(make_apply(config))
        found = apply(params, None, structure)
        step = 1e-4

        def energy(atom, axis, by):
            return apply(params, None, structure._replace(positions=structure.positions.at[atom, axis].add(by)))

        for atom in range(4):
            slope = [
                float(energy(atom, axis, step).formation_energy - energy(atom, axis, -step).formation_energy)
                / (2 * step)
                for axis in range(3)
            ]
            np.testing.assert_allclose(found.forces[atom], -np.array(slope), rtol=1e-6, atol=1e-7)
        assert found.forces.dtype == jnp.float64
        np.testing.assert_allclose(found.forces[4], np.zeros(3), atol=1e-12)
