"""The plain network computes what ours does, on the same neighbours, so comparing their speed is fair."""

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agedi.config import DiffusionConfig, ModelConfig
from agedi.data.graph import from_atoms, pad_graph, stack_graphs
from agedi.network.score import make_score_model
from agedi.network.search import make_search
from benchmarks.baselines.agedi import all_edges, find_with_ase, find_with_matscipy, noise_of


@pytest.mark.parametrize("find", [find_with_matscipy, find_with_ase])
def test_plain_network_is_ours(find, rng):
    if find is find_with_matscipy:
        pytest.importorskip("matscipy")
    config = DiffusionConfig(noisers=("CellPositions",), model=ModelConfig(feature_size=8, n_rbf=8, cutoff=4.0))
    model = make_score_model(jax.random.key(0), config)
    params = jax.tree.map(lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape, np.float32), model.params)
    structures = [
        ase.Atoms(rng.choice([6, 8], n), scaled_positions=rng.random((n, 3)), cell=(4 + n / 3) * np.eye(3), pbc=True)
        for n in (3, 5)
    ]
    levels = jnp.array([0.3])
    graphs = jax.vmap(make_search(4.0, 40, (1, 1, 1)))(stack_graphs([pad_graph(from_atoms(a), 6) for a in structures]))
    assert not graphs.edges.overflow.any()
    ours = jax.jit(jax.vmap(lambda p, g: model.apply(p, g, levels, {}, jnp.array(False)).noise, (None, 0)))(
        params, graphs
    )
    numbers, positions = (np.concatenate([getattr(a, name) for a in structures]) for name in ("numbers", "positions"))
    edges = all_edges(structures, find, 4.0)
    with jax.numpy_rank_promotion("allow"):
        plain = jax.jit(noise_of, static_argnums=1)(params, config.model, numbers, positions, edges, levels)
    assert np.abs(plain).max() > 0.05
    np.testing.assert_allclose(np.concatenate([ours[0, :3], ours[1, :5]]), plain, atol=1e-4)
