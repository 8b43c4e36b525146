import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystalformer.symmetry.lattice import cell_problem, free_parameters, from_scaled, impose_lattice, to_scaled
from crystalformer.symmetry.wyckoff import general_operations

LATTICE = np.array([3.0, 4.0, 5.0, 1.4, 1.5, 1.6])


def metric(lattice):
    """Metric tensor (Å²) of a lattice."""
    a, b, c, alpha, beta, gamma = lattice
    cosines = np.array(
        [[1, np.cos(gamma), np.cos(beta)], [np.cos(gamma), 1, np.cos(alpha)], [np.cos(beta), np.cos(alpha), 1]]
    )
    return np.outer([a, b, c], [a, b, c]) * cosines


@pytest.mark.parametrize("G", range(1, 231))
def test_imposed_lattice_is_invariant_under_the_group_and_no_more_constrained(G):
    rotations = general_operations(G)[:, :, :3]
    g = metric(impose_lattice(G, LATTICE))
    np.testing.assert_allclose(
        rotations.transpose(0, 2, 1) @ g @ rotations, np.broadcast_to(g, rotations.shape), atol=1e-9
    )
    # As many free parameters as dimensions in the space of symmetric matrices that the rotations leave alone.
    averaged = sum(np.kron(r.T, r.T) for r in rotations) / len(rotations)
    symmetric = (np.eye(9) + _transposition()) / 2
    assert round(np.trace(averaged @ symmetric)) == free_parameters()[G - 1].sum()


def _transposition():
    """The 9x9 matrix that transposes a flattened 3x3 matrix."""
    return np.eye(9).reshape(3, 3, 9).transpose(1, 0, 2).reshape(9, 9)


@pytest.mark.parametrize("G", [1, 2, 3, 15, 16, 74, 75, 142, 143, 194, 195, 230])
def test_free_parameters_stay_and_jax_agrees_with_numpy(G):
    imposed = impose_lattice(G, LATTICE)
    free = free_parameters()[G - 1]
    np.testing.assert_array_equal(imposed[free], LATTICE[free])
    traced = jax.jit(jax.vmap(impose_lattice))(jnp.array([G]), jnp.asarray(LATTICE)[None])[0]
    np.testing.assert_allclose(traced, imposed, rtol=1e-6)
    np.testing.assert_array_equal(impose_lattice(G, imposed), imposed)


def test_hexagonal_groups_have_120_degrees():
    np.testing.assert_allclose(np.degrees(impose_lattice(166, LATTICE)), [*np.degrees([3.0, 3.0, 5.0]), 90, 90, 120])


def test_scaling_keeps_the_volume_per_atom_and_returns():
    num_atoms = np.array([1, 8])
    lattices = np.stack([LATTICE, LATTICE])
    scaled = to_scaled(lattices, num_atoms)
    np.testing.assert_allclose(scaled[1], [1.5, 2.0, 2.5, 1.4, 1.5, 1.6])
    np.testing.assert_allclose(from_scaled(scaled, num_atoms), lattices, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(from_scaled)(jnp.asarray(scaled), jnp.asarray(num_atoms)), lattices, rtol=1e-6)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ((3, 4, 5, 90, 90, 120), ""),
        ((3, -4, 5, 90, 90, 90), "length is not positive: -4"),
        ((3, 4, 5, 60, 60, 130), "angles"),  # alpha + beta < gamma
        ((3, 4, 5, 90, 190, 90), "angles"),
        ((3, np.nan, 5, 90, 90, 90), "finite"),
    ],
)
def test_impossible_cells_are_named(cell, words):
    problem = cell_problem(np.array(cell, float))
    assert bool(problem) == bool(words)
    assert words in problem
