import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agedi.network.messages import Pairs, Slots, choose_layout, collapse, contract, contract_back, messages, outer


@pytest.fixture
def crystal(searched, rng):
    """Five atoms in a cell so small that most pairs meet through several images, in 7 rows."""
    import ase

    cell = 2.8 * np.eye(3) + 0.3 * rng.standard_normal((3, 3))
    atoms = ase.Atoms("C5", scaled_positions=rng.random((5, 3)), cell=cell, pbc=True)
    return searched(atoms, 7, cutoff=4.0)


def random_layout(graph, rng):
    shape = graph.edges.index.shape
    used = np.asarray(graph.edges.mask)[..., None]
    radial = rng.standard_normal((*shape, 6), np.float32) * used
    return jnp.asarray(radial), jnp.asarray(rng.standard_normal((*shape, 3), np.float32))


def test_layouts_agree(crystal, rng):
    radial, direction = random_layout(crystal, rng)
    filters, values, vectors = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in ((6, 12), (7, 12), (7, 3, 4)))
    slots = Slots(radial, direction, crystal.edges)
    pairs = collapse(radial, direction, crystal.edges)
    assert crystal.edges.mask.sum() > 5 * 5 * 4  # or no image would have been added to another
    # Sums of hundreds of terms of order 1.
    for from_slots, from_pairs in zip(
        messages(slots, filters, values, vectors), messages(pairs, filters, values, vectors), strict=True
    ):
        np.testing.assert_allclose(from_pairs, from_slots, atol=2e-4)


def test_slots_give_the_sum_over_neighbours(crystal, rng):
    radial, direction = random_layout(crystal, rng)
    filters, values, vectors = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in ((6, 12), (7, 12), (7, 3, 4)))
    plain, directed = messages(Slots(radial, direction, crystal.edges), filters, values, vectors)
    edges = crystal.edges
    for i in range(5):
        scalar, vector = np.zeros(4), np.zeros((3, 4))
        for slot in np.flatnonzero(edges.mask[i]):
            j = int(edges.index[i, slot])
            weighted = np.asarray(radial[i, slot] @ filters * values[j])
            scalar += weighted[:4]
            vector += np.outer(direction[i, slot], weighted[4:8]) + weighted[8:] * np.asarray(vectors[j])
        np.testing.assert_allclose(plain[i], scalar, atol=2e-4)
        np.testing.assert_allclose(directed[i], vector, atol=2e-4)


def test_layout_with_fewer_rows_is_chosen(crystal, rng):
    radial, direction = random_layout(crystal, rng)
    assert isinstance(choose_layout(radial, direction, crystal.edges), Pairs)
    few = jax.tree.map(lambda x: x[:, :4] if x.ndim > 1 else x, crystal.edges)
    assert isinstance(choose_layout(radial[:, :4], direction[:, :4], few), Slots)


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (contract, lambda w, x: jnp.einsum("ijf,jf->if", w, x)),
        (contract_back, lambda w, x: jnp.einsum("ijf,if->jf", w, x)),
        (outer, lambda a, b: jnp.einsum("if,jf->ijf", a, b)),
    ],
)
def test_sums_and_their_first_two_derivatives(function, plain, rng):
    shapes = {contract: ((3, 4, 2), (4, 2)), contract_back: ((3, 4, 2), (3, 2)), outer: ((3, 2), (4, 2))}[function]
    arguments = [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]

    def derivatives(f):
        def total(*x):
            return jnp.sum(jnp.sin(f(*x)))

        def slope(*x):
            return sum(jnp.sum(jnp.cos(g)) for g in jax.grad(total, (0, 1))(*x))

        return f(*arguments), jax.grad(total, (0, 1))(*arguments), jax.grad(slope, (0, 1))(*arguments)

    for ours, expected in zip(jax.tree.leaves(derivatives(function)), jax.tree.leaves(derivatives(plain)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
