"""Every head of the specification, units, and what follows from the derivative of the energy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atomformer.config import HEADS, AtomformerConfig, EnergyScale
from atomformer.data.periodic import image_edges
from atomformer.data.structure import Structure
from atomformer.network.heads import Outputs, linear_head, read_heads
from atomformer.network.parameters import init_params
from atomformer.network.transformer import make_apply

pytestmark = pytest.mark.usefixtures("quick")

SHAPES = {
    "formation_energy": {"formation_energy": ()},
    "total_energy": {"total_energy": ()},
    "forces": {"forces": (5, 3)},
    "total_forces": {"forces": (5, 3)},
    "masked": {"logits": (5, 123)},
    "coords": {"coords": (5, 3)},
    "classification": {"labels": (4,)},
}
# Tasks and the heads that they read (docs/formulas/atomformer.md, section 4).
TASKS = [
    ("formation_energy", "forces"),
    ("formation_energy",),
    ("forces",),
    ("total_energy", "total_forces"),
    ("masked",),
    ("coords",),
    ("total_energy",),
    ("coords", "total_energy"),
    ("classification",),
    HEADS,
]


def shapes_of(config: AtomformerConfig, structure: Structure) -> dict[str, tuple[int, ...]]:
    """Shapes of all outputs, from the structure alone: there are no labels that a head could ask for."""
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    found = jax.eval_shape(make_apply(config), params, None, structure)
    return {name: leaf.shape for name, leaf in found._asdict().items() if leaf is not None}


@pytest.mark.parametrize("heads", TASKS, ids="+".join)
def test_every_task_has_its_outputs_and_no_others(tiny_config, molecules, heads):
    config = dataclasses.replace(tiny_config, heads=heads, num_labels=4)
    structure = jax.tree.map(lambda x: x[0], molecules((5,)))
    expected = {"hidden": (6, 32)}
    for head in heads:
        expected |= SHAPES[head]
    assert shapes_of(config, structure) == expected


@pytest.mark.parametrize("heads", [("total_energy", "total_forces"), ("formation_energy", "forces", "coords")])
def test_conservative_heads_have_the_same_outputs_and_stress_in_cells(tiny_config, molecules, heads):
    config = dataclasses.replace(tiny_config, heads=heads, conservative=True)
    structure = jax.tree.map(lambda x: x[0], molecules((5,)))
    expected = {"hidden": (6, 32), "forces": (5, 3)}
    for head in heads:
        expected |= SHAPES[head]
    assert shapes_of(config, structure) == expected
    in_cell = structure._replace(cell=np.eye(3, dtype=np.float32), pbc=np.ones(3, bool))
    periodic = dataclasses.replace(config, periodic="minimum_image")
    assert shapes_of(periodic, in_cell) == expected | {"stress": (3, 3)}


def test_heads_begin_as_specified():
    """Total energies, total forces and labels from zero and without bias; the S2EF heads as in pre-training."""
    heads = init_params(jax.random.key(0), AtomformerConfig(dim=32, num_heads=2, depth=1, k=4, heads=HEADS))["heads"]
    for name in ("total_energy", "total_forces", "classification"):
        assert set(heads[name]) == {"norm", "w"}
        np.testing.assert_array_equal(heads[name]["w"], 0)
    assert set(heads["formation_energy"]) == {"norm", "w"}
    assert set(heads["forces"]) == {"norm", "w", "b"}
    assert set(heads["masked"]) == set(heads["coords"]) == {"w", "b"}
    for name in ("formation_energy", "forces", "masked", "coords"):
        assert np.std(heads[name]["w"]) == pytest.approx(32**-0.5, rel=0.4)


def read(config: AtomformerConfig, params, atoms=4, real=3) -> Outputs:
    hidden = jax.random.normal(jax.random.key(1), (atoms + 1, config.dim))
    return read_heads(params["heads"], hidden, jnp.arange(atoms) < real, config)


def test_energies_and_forces_are_scaled_to_their_units(tiny_config, lively):
    params = lively(tiny_config)
    plain = read(tiny_config, params)
    scaled = read(dataclasses.replace(tiny_config, energy=EnergyScale(scale=2.5)), params)
    np.testing.assert_allclose(scaled.formation_energy, 2.5 * plain.formation_energy, rtol=1e-6)
    np.testing.assert_allclose(scaled.forces, 2.5 * plain.forces, rtol=1e-6)
    extensive = read(dataclasses.replace(tiny_config, energy=EnergyScale(scale=2.5, per_atom=True)), params)
    np.testing.assert_allclose(extensive.formation_energy, 3 * 2.5 * plain.formation_energy, rtol=1e-6)
    np.testing.assert_allclose(extensive.forces, scaled.forces, rtol=1e-6)


def test_labels_come_in_their_own_units(tiny_config, lively):
    config = dataclasses.replace(tiny_config, heads=("classification",), num_labels=2)
    params = lively(config)
    plain = read(config, params).labels
    for mean, scale in [((1.0, -3.0), (2.0, 0.5)), ((1.0, -3.0), ()), ((), (2.0, 0.5))]:
        labels = read(dataclasses.replace(config, label_mean=mean, label_scale=scale), params).labels
        expected = np.array(mean or (0, 0)) + np.array(scale or (1, 1)) * np.asarray(plain)
        np.testing.assert_allclose(labels, expected, rtol=1e-5, atol=1e-6)


def test_heads_read_half_precision_in_full(lively, tiny_config):
    leaves = lively(tiny_config)["heads"]["forces"]
    x = jax.random.normal(jax.random.key(0), (4, 32)).astype(jnp.bfloat16)
    found = linear_head(leaves, x)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, linear_head(leaves, x.astype(jnp.float32)))


def in_cell(config: AtomformerConfig) -> Structure:
    """Three atoms in a skewed cell, in double precision; some neighbours are images."""
    cell = np.array([[3.0, 0.2, 0.0], [-0.4, 3.3, 0.3], [0.2, 0.1, 3.6]])
    positions = np.array([[0.1, 0.2, 0.3], [0.9, 0.5, 0.2], [0.4, 0.8, 0.7]]) @ cell
    pbc = np.ones(3, bool)
    edges = image_edges(positions, cell, pbc, config.cutoff) if config.periodic == "images" else None
    structure = Structure(np.array([3, 8, 26], np.int32), positions, np.ones(3, bool), None, cell, pbc, edges)
    return jax.tree.map(jnp.asarray, structure)


@pytest.mark.parametrize("periodic", ["minimum_image", "images"])
def test_forces_stress_and_denoising_are_slopes_of_the_energy(tiny_config, lively, in_double, periodic):
    options = {"periodic": periodic, "cutoff": 4.0, "conservative": True, "heads": ("total_energy", "coords")}
    config = dataclasses.replace(tiny_config, **options, energy=EnergyScale(scale=3.0, per_atom=True))
    params = lively(config)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        structure, step = in_cell(config), 1e-5
        outputs = jax.jit(make_apply(in_double(config)))
        found = outputs(params, None, structure)

        def slope(change) -> float:
            up, down = (outputs(params, None, change(by)).total_energy for by in (step, -step))
            return float(up - down) / (2 * step)

        for atom, axis in itertools.product(range(3), repeat=2):
            along = slope(lambda by, at=(atom, axis): structure._replace(positions=structure.positions.at[at].add(by)))
            np.testing.assert_allclose(found.forces[atom, axis], -along, rtol=1e-5, atol=1e-7)
        volume = abs(np.linalg.det(structure.cell))
        for a, b in itertools.product(range(3), repeat=2):

            def strained(by, at=(a, b)):
                strain = np.zeros((3, 3))
                strain[at] += by / 2
                strain[at[::-1]] += by / 2
                deformation = np.eye(3) + strain
                return structure._replace(
                    positions=structure.positions @ deformation, cell=structure.cell @ deformation
                )

            np.testing.assert_allclose(found.stress[a, b], slope(strained) / volume, rtol=1e-5, atol=1e-8)
        denoised = structure.positions + params["heads"]["coords"]["step"][0] * found.forces
        np.testing.assert_allclose(found.coords, denoised, rtol=1e-12)
        np.testing.assert_allclose(found.forces.sum(0), np.zeros(3), atol=1e-10)
    assert np.abs(found.forces).max() > 1e-3
    assert np.abs(found.stress).max() > 1e-5
