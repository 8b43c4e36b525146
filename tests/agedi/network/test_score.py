import functools

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agedi.config import ConditionConfig, DiffusionConfig, ForceFieldConfig, ModelConfig
from agedi.network.score import make_score_model

pytestmark = pytest.mark.usefixtures("quick")

MODEL = ModelConfig(feature_size=8, n_blocks=2, n_rbf=8, cutoff=4.0)
LEVELS = jnp.array([0.3, -0.2])
CAPACITY = 128


@functools.cache
def lively(conservative=False, force_field=True, conditions=("energy",)):
    """A small model with all parameters away from their start, so that every part matters."""
    config = DiffusionConfig(
        noisers=("CellPositions", "Types"),
        species=(1, 6, 8),
        model=MODEL,
        conditions=tuple(ConditionConfig(name=name) for name in conditions),
        force_field=ForceFieldConfig(
            conservative=conservative, reference_energies=((6, -1.0), (8, -2.0)), energy_scale=0.5
        )
        if force_field
        else None,
    )
    model = make_score_model(jax.random.key(0), config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + np.float32(0.2) * rng.standard_normal(x.shape, np.float32), model.params)
    apply = jax.jit(model.apply)
    force_field = None if model.force_field is None else jax.jit(model.force_field)
    return model._replace(params=params, apply=apply, force_field=force_field)


def crystal(seed=0, count=5, edge=3.6):
    """Random atoms in a skewed cell of about the cutoff's size."""
    rng = np.random.default_rng(seed)
    cell = edge * np.eye(3) + 0.4 * rng.standard_normal((3, 3))
    return ase.Atoms(rng.choice([6, 8], count), scaled_positions=rng.random((count, 3)), cell=cell, pbc=True)


def predict(searched, atoms, length=6, *, levels=LEVELS, energy=-3.5, known=True):
    model = lively()
    graph = searched(atoms, length, cutoff=MODEL.cutoff, capacity=CAPACITY)
    outputs = model.apply(model.params, graph, levels, {"energy": jnp.float32(energy)}, jnp.array(known))
    energy, forces = model.force_field(model.params, graph)
    return {"noise": outputs.noise, "logits": outputs.logits, "energy": energy, "forces": forces}


def turned(atoms, turn):
    return ase.Atoms(atoms.numbers, positions=atoms.positions @ turn.T, cell=atoms.cell.array @ turn.T, pbc=atoms.pbc)


def test_rotation_turns_vectors_and_keeps_scalars(searched, rng):
    atoms, turn = crystal(), np.linalg.qr(rng.standard_normal((3, 3)))[0]
    before, after = predict(searched, atoms), predict(searched, turned(atoms, turn))
    for name in ("noise", "forces"):
        assert np.abs(before[name]).max() > 0.05
        np.testing.assert_allclose(after[name], before[name] @ turn.T, atol=2e-4)
    for name in ("logits", "energy"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4, atol=1e-4)


def test_translation_and_choice_of_images_change_nothing(searched, rng):
    atoms = crystal()
    before = predict(searched, atoms)
    moved = atoms.copy()
    moved.positions += [0.4, -1.3, 7.0] + rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    for name, value in predict(searched, moved).items():
        np.testing.assert_allclose(value, before[name], rtol=1e-4, atol=2e-4, err_msg=name)


def test_atoms_may_come_in_any_order(searched, rng):
    atoms, order = crystal(), rng.permutation(5)
    before, after = predict(searched, atoms), predict(searched, atoms[order])
    for name in ("noise", "logits", "forces"):
        np.testing.assert_allclose(after[name][:5], before[name][order], atol=2e-4)
    np.testing.assert_allclose(after["energy"], before["energy"], rtol=1e-4)


def test_supercell_repeats_its_cell(searched):
    atoms = crystal()
    before, after = predict(searched, atoms), predict(searched, atoms.repeat((2, 1, 2)), 20)
    for name in ("noise", "logits", "forces"):
        np.testing.assert_allclose(after[name], np.tile(before[name][:5], (4, 1)), atol=2e-4)
    np.testing.assert_allclose(after["energy"], 4 * before["energy"], rtol=1e-4)


def test_padding_changes_nothing(searched):
    """With few rows messages go over pairs, with more than slots over those: the two layouts agree too."""
    atoms = crystal()
    before = predict(searched, atoms, 5)
    for length in (6, CAPACITY + 2):
        after = predict(searched, atoms, length)
        for name in ("noise", "logits", "forces"):
            np.testing.assert_allclose(after[name][:5], before[name], rtol=1e-4, atol=2e-4)
        np.testing.assert_array_equal(after["noise"][5:], 0)
        np.testing.assert_array_equal(after["forces"][5:], 0)
        np.testing.assert_allclose(after["energy"], before["energy"], rtol=1e-4)


def test_atoms_feel_others_only_within_the_cutoff(searched):
    """In one block; every block reaches a cutoff further."""
    atoms = ase.Atoms("C3", positions=[[0, 0, 0], [1.5, 0, 0], [0, 11.0, 0]])
    together, alone = predict(searched, atoms), predict(searched, atoms[:2])
    np.testing.assert_allclose(together["noise"][:2], alone["noise"][:2], atol=1e-5)
    assert np.abs(alone["noise"]).max() > 0.01
    np.testing.assert_allclose(together["noise"][2], 0, atol=1e-5)  # nothing gives it a direction


def test_outputs_fade_out_towards_the_cutoff(searched):
    within, before, after = [
        predict(searched, ase.Atoms("CO", positions=[[0, 0, 0], [d, 0, 0]]))["noise"][0, 0]
        for d in (1.5, MODEL.cutoff - 1e-3, MODEL.cutoff + 1e-3)
    ]
    assert abs(within) > 2e-3
    assert abs(before) < 0.05 * abs(within)  # small vectors are normalised, which makes the slope there steep
    assert after == 0


def test_levels_and_properties_reach_the_outputs(searched):
    atoms = crystal()
    base = predict(searched, atoms)
    changed = {
        "levels": predict(searched, atoms, levels=LEVELS + 0.1),
        "energy": predict(searched, atoms, energy=-2.0),
        "known": predict(searched, atoms, known=False),
    }
    for what, after in changed.items():
        for name in ("noise", "logits"):
            assert np.abs(after[name] - base[name]).max() > 1e-2, (what, name)
        np.testing.assert_array_equal(
            after["forces"], base["forces"]
        )  # of a clean structure, whatever it was drawn for
    without = predict(searched, atoms, energy=7.0, known=False)
    np.testing.assert_array_equal(without["noise"], changed["known"]["noise"])


def test_fixed_atoms_are_marked_for_diffusion_only(searched):
    model = lively()
    graph = searched(crystal(), 6, cutoff=MODEL.cutoff, capacity=CAPACITY)
    fixed = graph._replace(mask=jnp.arange(6) == 0)
    conditions = {"energy": jnp.float32(0.0)}
    outputs = [model.apply(model.params, g, LEVELS, conditions, jnp.array(True)).noise for g in (graph, fixed)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    energies = [model.force_field(model.params, g)[0] for g in (graph, fixed)]
    assert energies[0] == energies[1]


def test_batches_do_not_change_results(searched):
    model = lively()
    graphs = [searched(crystal(seed), 6, cutoff=MODEL.cutoff, capacity=CAPACITY) for seed in range(6)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *graphs)
    levels = jnp.linspace(-1, 1, 12).reshape(6, 2)
    conditions, known = {"energy": jnp.arange(6.0)}, jnp.arange(6) % 2 == 0
    together = jax.jit(jax.vmap(model.apply, (None, 0, 0, 0, 0)))(model.params, batch, levels, conditions, known)
    energies, forces = jax.jit(jax.vmap(model.force_field, (None, 0)))(model.params, batch)
    for i, graph in enumerate(graphs):
        alone = model.apply(model.params, graph, levels[i], {"energy": conditions["energy"][i]}, known[i])
        np.testing.assert_allclose(together.noise[i], alone.noise, atol=1e-4)
        np.testing.assert_allclose(together.logits[i], alone.logits, atol=1e-4)
        energy, force = model.force_field(model.params, graph)
        np.testing.assert_allclose(energies[i], energy, rtol=1e-5)
        np.testing.assert_allclose(forces[i], force, atol=1e-4)


@pytest.mark.parametrize("length", [6, 130])
def test_conservative_forces_are_the_slope_of_the_energy(searched, length):
    model = lively(conservative=True)
    graph = searched(crystal(), length, cutoff=MODEL.cutoff, capacity=CAPACITY)
    _, forces = model.force_field(model.params, graph)
    with jax.enable_x64(True):  # differences of float32 energies would be too rough
        wide = jax.tree.map(lambda x: np.asarray(x, float) if x.dtype.kind == "f" else x, jax.device_get(graph))
        params = jax.tree.map(lambda x: np.asarray(x, float), model.params)
        energy_at = jax.jit(lambda pos: model.force_field(params, wide._replace(pos=pos))[0])
        for atom, axis in ((0, 0), (3, 2)):
            step = np.zeros_like(wide.pos)
            step[atom, axis] = 1e-4
            slope = (energy_at(wide.pos + step) - energy_at(wide.pos - step)) / 2e-4
            np.testing.assert_allclose(forces[atom, axis], -slope, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-4)


@pytest.mark.parametrize("length", [6, 130])
def test_conservative_forces_can_be_trained(searched, length):
    """The gradient of a loss of forces, in a batch, against the difference of two losses."""
    model = lively(conservative=True)
    graph = searched(crystal(), length, cutoff=MODEL.cutoff, capacity=CAPACITY)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), graph)

    @jax.jit
    def loss(params):
        energies, forces = jax.vmap(model.force_field, (None, 0))(params, batch)
        return jnp.sum(jnp.sin(forces)) + 0.1 * jnp.sum(jnp.cos(energies))

    gradient = jax.jit(jax.grad(loss))(model.params)
    direction = jax.tree.map(lambda g: g / (jnp.linalg.norm(g) + 1e-9), gradient)
    slope = sum(jnp.sum(g * d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    step = 2e-4
    up = loss(jax.tree.map(lambda p, d: p + step * d, model.params, direction))
    down = loss(jax.tree.map(lambda p, d: p - step * d, model.params, direction))
    np.testing.assert_allclose((up - down) / (2 * step), slope, rtol=2e-2)


def test_gradients_are_finite_where_atoms_coincide(searched):
    atoms = ase.Atoms("C3", positions=[[0, 0, 0], [0, 0, 0], [1.4, 0, 0]])
    model = lively(conservative=True)
    graph = searched(atoms, 6, cutoff=MODEL.cutoff, capacity=CAPACITY)
    batch = jax.tree.map(lambda x: x[None], graph)
    gradient = jax.grad(lambda p: jnp.sum(jax.vmap(model.force_field, (None, 0))(p, batch)[1] ** 2))(model.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_reference_energies_are_added(searched):
    model = lively()
    plain = make_score_model(
        jax.random.key(0),
        DiffusionConfig(noisers=("CellPositions",), model=MODEL, force_field=ForceFieldConfig(energy_scale=0.5)),
    )
    graph = searched(ase.Atoms("C2OH", positions=1.2 * np.eye(4, 3)), 6, cutoff=MODEL.cutoff, capacity=CAPACITY)
    with_references, _ = model.force_field(model.params, graph)
    without, _ = plain.force_field(model.params, graph)
    np.testing.assert_allclose(with_references - without, 2 * -1.0 + -2.0, rtol=1e-5)


def test_only_what_the_config_names_is_there(searched):
    graph = searched(crystal(), 6, cutoff=MODEL.cutoff, capacity=CAPACITY)
    positions = make_score_model(jax.random.key(0), DiffusionConfig(noisers=("CellPositions",), model=MODEL))
    outputs = positions.apply(positions.params, graph, LEVELS[:1], {}, jnp.array(False))
    assert outputs.logits is None
    assert outputs.noise.shape == (6, 3)
    assert positions.force_field is None
    types = make_score_model(jax.random.key(0), DiffusionConfig(noisers=("Types",), species=(6, 8), model=MODEL))
    outputs = types.apply(types.params, graph, LEVELS[:1], {}, jnp.array(False))
    assert outputs.noise is None
    np.testing.assert_array_equal(outputs.logits, np.zeros((6, 2)))  # at the start all species are equally likely


def test_missing_edges_are_named(searched):
    model = lively()
    graph = searched(crystal(), 6, cutoff=MODEL.cutoff, capacity=CAPACITY)._replace(edges=None)
    with pytest.raises(ValueError, match=r"needs graph.edges.*neighbor_list"):
        model.force_field(model.params, graph)


def test_one_structure_can_be_differentiated_by_its_positions(searched):
    """The network is a plain function of one structure; only those who batch it compute in groups."""
    atoms = ase.Atoms("CO2", positions=[[0, 0, 0], [1.2, 0.1, 0], [-1.1, 0, 0.2]])
    model = lively()
    graph = searched(atoms, 4, cutoff=MODEL.cutoff, capacity=CAPACITY)

    def total(pos):
        return jnp.sum(model.apply(model.params, graph._replace(pos=pos), jnp.zeros(2), {}, jnp.array(True)).noise[0])

    gradient = jax.grad(total)(jnp.asarray(graph.pos))
    step = jnp.zeros_like(gradient).at[1, 0].set(1e-2)
    slope = (total(graph.pos + step) - total(graph.pos - step)) / 2e-2
    np.testing.assert_allclose(gradient[1, 0], slope, rtol=5e-2, atol=1e-4)
