"""A tiny network with every parameter away from its start, random molecules, and what short training runs share."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atomformer.config import AtomformerConfig
from atomformer.data.structure import Structure
from atomformer.data.vocabulary import PAD
from atomformer.network.parameters import init_params


@pytest.fixture(scope="session")
def tiny_config() -> AtomformerConfig:
    """A network small enough to compile in seconds."""
    return AtomformerConfig(dim=32, num_heads=2, depth=2, k=16)


@pytest.fixture(scope="session")
def lively() -> Callable[..., Any]:
    """Parameters far from the start, where every part of a network matters to its output."""

    @functools.cache
    def make(config: AtomformerConfig, seed: int = 0) -> Any:
        params = jax.jit(init_params, static_argnums=1)(jax.random.key(seed), config)
        metadata = params["encoder"]["metadata"]  # a table, not a parameter
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(seed)
        params = tree.unflatten([x + np.float32(0.1) * rng.standard_normal(x.shape, np.float32) for x in leaves])
        params["encoder"]["metadata"] = metadata
        # Gaussians so narrow that float32 no longer resolves them would hide errors behind rounding.
        params["encoder"]["pair"]["stds"] = jnp.asarray(rng.uniform(0.3, 2.0, config.k), jnp.float32)
        return params

    return make


@pytest.fixture(scope="session")
def molecules() -> Callable[..., Structure]:
    """A function that draws molecules of the given sizes, padded with atoms that must not matter."""

    def draw(counts: tuple[int, ...], length: int | None = None, seed: int = 0) -> Structure:
        rng, n = np.random.default_rng(seed), length or max(counts)
        structures = []
        for count in counts:
            tokens, positions = np.full(n, PAD, np.int32), np.zeros((n, 3), np.float32)
            tokens[:count] = rng.integers(1, 95, count)
            positions[:count] = rng.normal(0.5, 1.5, (count, 3))
            positions[count:] = 40.0
            structures.append(Structure(tokens, positions, np.arange(n) < count))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *structures)

    return draw


@pytest.fixture(scope="session")
def in_double() -> Callable[[AtomformerConfig], AtomformerConfig]:
    """A function that makes a config compute in float64, which only finite differences need: no user can ask for it."""

    def change(config: AtomformerConfig) -> AtomformerConfig:
        config = dataclasses.replace(config)
        object.__setattr__(config, "compute_dtype", "float64")
        return config

    return change


# Atoms that no symmetry makes alike, since forces of the direct head follow from distances alone.
TOYS = {
    "HCO": [[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [1.6, 1.2, 0.0]],
    "SiHO": [[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [-0.3, 1.6, 0.2]],
    "CClO": [[0.0, 0.0, 0.0], [1.7, 0.0, 0.0], [-0.5, 1.0, 0.3]],
}
TOY_REFERENCES = {"H": -13.6, "C": -1028.5, "O": -2041.25, "Si": -7870.0, "Cl": -12500.0}  # eV


@pytest.fixture(scope="session")
def toys() -> list[ase.Atoms]:
    """24 breathing molecules of three kinds: Lennard-Jones energies and forces, and properties to learn.

    The formation energy is that of Lennard-Jones, the total one has thousands of eV an atom besides. `gap` is a number,
    `polar` a truth value, `kind` a class, `mu` a vector.
    """
    from ase.calculators.lj import LennardJones
    from ase.calculators.singlepoint import SinglePointCalculator

    structures = []
    for i in range(24):
        kind = i % 3
        symbols, positions = list(TOYS.items())[kind]
        breath = 1 + 0.12 * np.sin(7 * i)
        atoms = ase.Atoms(symbols, breath * np.array(positions))
        atoms.calc = LennardJones(sigma=1.2, epsilon=0.05, rc=20.0)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        total = energy + sum(TOY_REFERENCES[symbol] for symbol in atoms.get_chemical_symbols())
        atoms.calc = SinglePointCalculator(atoms, energy=total, forces=forces)
        atoms.info |= {"formation_energy": energy, "gap": 2.0 * kind + breath, "polar": float(kind == 2)}
        atoms.info |= {"kind": float(kind), "mu": np.array([kind, breath])}
        structures.append(atoms)
    return structures


@pytest.fixture(scope="session")
def toy_file(toys, tmp_path_factory) -> pathlib.Path:
    """The toys as extxyz."""
    from matterform.io.formats import write_structures

    path = tmp_path_factory.mktemp("toys") / "toys.xyz"
    write_structures(path, toys)
    return path
