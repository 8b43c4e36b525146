"""Log-probability of crystals and the training loss (docs/formulas/crystalformer.md, section 3)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from crystalformer.config import LossConfig, TransformerConfig
from crystalformer.data.batches import bucket_lengths
from crystalformer.data.crystals import Crystals, check_crystals, num_slots, truncate
from crystalformer.network import distributions
from crystalformer.network.parameters import Network, Params, as_network
from crystalformer.network.transformer import forward, read_coordinate, read_lattice
from crystalformer.symmetry import lattice
from crystalformer.symmetry.wyckoff import symmetry_tables
from matterform.training.batches import make_batch_plan
from matterform.training.mesh import DATA_AXIS, make_local_mesh


class LogProb(NamedTuple):
    """Log-probabilities (nats): letters, coordinates (density per rad), elements, lattice (density in model units)."""

    w: Float[Any, "*b"]
    xyz: Float[Any, "*b"]
    a: Float[Any, "*b"]
    l: Float[Any, "*b"]

    @property
    def total(self) -> Float[Any, "*b"]:
        """Log-probability (nats) of the whole crystal."""
        return self.w + self.xyz + self.a + self.l


def crystal_log_prob(
    network: Network, key: PRNGKeyArray | None, crystal: Crystals, config: TransformerConfig
) -> LogProb:
    """The four log-probabilities (nats) of one crystal with at least one padding slot; `key=None` means no dropout."""
    G, L, XYZ, A, W = crystal
    tables = symmetry_tables()
    M = jnp.asarray(tables.multiplicity)[G - 1, W]
    h = forward(network, key, G, XYZ, A, W, M, config)
    slots = np.arange(W.shape[0])
    num_sites = jnp.sum(W > 0)
    return LogProb(
        w=jnp.sum(h[5 * slots, W]),
        xyz=_coordinate_log_prob(h, G, XYZ, W, config),
        a=jnp.sum(h[5 * slots + 1, A]),
        l=lattice_log_prob(h[5 * num_sites + 1], G, L, config),
    )


def _coordinate_log_prob(h, G, XYZ: Float[Array, "n 3"], W, config: TransformerConfig) -> Float[Array, ""]:
    rows = 5 * np.arange(W.shape[0])[:, None] + np.array([2, 3, 4])
    mixture = read_coordinate(h[rows], config)
    angle = jnp.broadcast_to((2 * np.pi * (XYZ - 0.5))[..., None], mixture.location.shape)
    log_prob = distributions.von_mises_log_prob(angle, mixture.location, mixture.concentration)
    log_prob = distributions.mixture_log_prob(mixture.log_weight, log_prob)
    counted = (W > 0)[:, None] & jnp.asarray(symmetry_tables().free_coordinate)[G - 1, W]
    return jnp.sum(jnp.where(counted, log_prob, 0))


def lattice_log_prob(row: Float[Array, " c"], G, L: Float[Array, "6"], config: TransformerConfig) -> Float[Array, ""]:
    """Log-density of the lattice parameters that are free in the space group; their mixtures share weights (eq. 11)."""
    mixture = read_lattice(row, config)
    log_prob = distributions.normal_log_prob(jnp.broadcast_to(L, mixture.mean.shape), mixture.mean, mixture.width)
    log_weight = jnp.broadcast_to(mixture.log_weight, (6, config.Kl))
    log_prob = distributions.mixture_log_prob(log_weight, log_prob.T)
    return jnp.sum(jnp.where(jnp.asarray(lattice.free_parameters())[G - 1], log_prob, 0))


def make_example_loss(config: TransformerConfig, loss: LossConfig):
    """The training loss of one crystal (eq. 12) and its parts, as a function for `matterform.training`."""

    def example_loss(params: Params, key: PRNGKeyArray | None, crystal: Crystals):
        log_prob = crystal_log_prob(as_network(params, config), key, crystal, config)
        weighted = log_prob.xyz + loss.lamb_a * log_prob.a + loss.lamb_w * log_prob.w + loss.lamb_l * log_prob.l
        parts = {f"loss_{name}": -value for name, value in log_prob._asdict().items()}
        return -weighted, parts

    return example_loss


@functools.cache
def _batch_log_prob(config: TransformerConfig, mesh: Mesh):
    def batch_log_prob(params, crystals):
        network = as_network(params, config)
        return jax.vmap(lambda crystal: crystal_log_prob(network, None, crystal, config))(crystals)

    everywhere, by_rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    return jax.jit(
        jax.shard_map(batch_log_prob, mesh=mesh, in_specs=(everywhere, by_rows), out_specs=by_rows, check_vma=False)
    )


def log_prob(params: Params, config: TransformerConfig, crystals: Crystals, batch_size: int = 64) -> LogProb:
    """Log-probabilities (nats) of crystals in model units, as NumPy arrays; `batch_size` crystals per device at a time.

    Crystals are grouped by length, so that the cost depends on their number of sites rather than on `n_max`.

    Raises:
        ValueError: if a crystal leaves no padding slot or exceeds the vocabulary of `config`.
    """
    crystals = Crystals(*(np.asarray(field) for field in crystals))
    check_crystals(crystals, config)
    mesh, width = make_local_mesh(), crystals.W.shape[1]
    results = np.zeros((4, len(crystals.G)), np.float32)
    if not len(crystals.G):
        return LogProb(*results)
    buckets = bucket_lengths(width if config.generation == "rotary" else min(width, config.n_max))
    plan = make_batch_plan(num_slots(crystals), batch_size * mesh.size, buckets, seed=0)
    for rows, _, length in plan.epoch(0):
        batch = jax.tree.map(lambda field, rows=rows: field[rows], crystals)
        results[:, rows] = np.stack(_batch_log_prob(config, mesh)(params, truncate(batch, length)))
    return LogProb(*results)
