"""Rewards in JAX: a function of one padded crystal, vmapped, and compiled once per padded size."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from crystalformer.rl.reward.base import Reward, Scores, make_scores
from matterform.cell import inverse
from matterform.elements import element_table
from matterform.evaluation.geometry import defect
from matterform.neighbors import image_counts, image_grid
from matterform.reduction import minkowski_cell

if TYPE_CHECKING:
    import pymatgen.core

SMALLEST_SIZE = 8  # atoms; padded sizes are this times powers of two
IMAGE_LEVELS = (2, 3, 5, 8, 12)  # periodic images searched in each direction
MAX_BATCH_SIZE = 32
MAX_PAIRS = 2**20  # atom pairs in a batch, not counting images; larger crystals get smaller batches

PAIR_CUTOFF_ANG = 8.0
PAIR_WORST = -10.0

Images = tuple[int, int, int]


class Padded(NamedTuple):
    """A crystal padded to n atoms; entries where `mask` is False are zero."""

    numbers: Int[Any, "*b n"]
    positions: Float[Any, "*b n 3"]  # Å
    cell: Float[Any, "*b 3 3"]  # rows are lattice vectors, Å
    mask: Bool[Any, "*b n"]


# Reward of one crystal; the second argument is the number of periodic images in each direction within the cutoff.
CrystalFunction = Callable[[Padded, Images], Float[Array, ""]]
# Distances (Å) of all pairs -> pair energies; infinite where two atoms coincide.
PairEnergy = Callable[[Float[Array, "n n"], Padded], Float[Array, "n n"]]


def jitted_reward(name: str, function: CrystalFunction, worst: float, cutoff: float) -> Reward:
    """The reward `function(crystal, images)`, computed in float32 on batches of crystals of similar size.

    Crystals without a usable cell or with partly occupied sites get `worst`, and so do lower or non-finite values.

    Args:
        cutoff: range (Å) of the function. A crystal may be passed in a more compact cell of the same lattice.

    Raises:
        ValueError: the cutoff is not positive.
    """
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive; got {cutoff:g} Å")

    @functools.cache
    def batched(images: Images) -> Callable[[Padded], Float[Array, " b"]]:
        return jax.jit(jax.vmap(lambda crystal: function(crystal, images)))

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        values, problems = np.full(len(structures), np.nan), [_problem(structure) for structure in structures]
        groups: dict[tuple[int, Images], list[tuple[int, Padded]]] = {}
        for index, structure in enumerate(structures):
            if problems[index]:
                continue
            cell, level = _compact_cell(structure.lattice.matrix, cutoff)
            if level is None:
                problems[index] = (
                    f"its cell is so thin that more than {IMAGE_LEVELS[-1]} images lie within {cutoff:g} Å"
                )
                continue
            padded = _padded(structure, cell)
            groups.setdefault((len(padded.numbers), (level, level, level)), []).append((index, padded))
        for (size, images), members in groups.items():
            batch_size = max(1, min(MAX_BATCH_SIZE, MAX_PAIRS // size**2))
            for start in range(0, len(members), batch_size):
                indices, crystals = zip(*members[start : start + batch_size], strict=True)
                filled = [crystals[row % len(crystals)] for row in range(batch_size)]
                batch = Padded(*map(np.stack, zip(*filled, strict=True)))
                values[list(indices)] = np.asarray(batched(images)(batch))[: len(indices)]
        return make_scores(values, problems, worst)

    return Reward(name, score, worst)


def pair_reward(cutoff: float = PAIR_CUTOFF_ANG, worst: float = PAIR_WORST) -> Reward:
    """Minus the energy per atom of a Lennard-Jones potential with depth 1 and its minimum where two atoms touch.

    Atoms touch at the sum of their covalent radii. The reward counts contacts (8.6 in a close-packed elemental crystal,
    including further neighbors) and penalizes overlaps; it is cheap and contains no chemistry.
    """
    pair_energy = lennard_jones(_touching, cutoff)

    def function(crystal: Padded, images: Images) -> Float[Array, ""]:
        return -total_pair_energy(crystal, images, pair_energy, cutoff) / jnp.sum(crystal.mask)

    return jitted_reward("pair", function, worst, cutoff)


def total_pair_energy(crystal: Padded, images: Images, pair_energy: PairEnergy, cutoff: float) -> Float[Array, ""]:
    """Energy per cell of all pairs closer than `cutoff` (Å), with periodic images; in the unit of `pair_energy`."""
    numbers = crystal.mask.shape[0]
    frac = jnp.matmul(crystal.positions, inverse(crystal.cell), precision="highest")
    apart = frac[None] - frac[:, None]
    apart = jnp.matmul(apart - jnp.round(apart), crystal.cell, precision="highest")
    pairs = crystal.mask[:, None] & crystal.mask[None]
    itself = jnp.eye(numbers, dtype=bool)

    def add(total: Float[Array, ""], shift: Int[Array, "3"]):
        vectors = apart + (shift.astype(apart.dtype) @ crystal.cell)[None, None]
        square = jnp.sum(vectors**2, axis=-1)
        near = pairs & (square < cutoff**2) & ~(itself & jnp.all(shift == 0))
        distance = jnp.sqrt(jnp.where(near & (square > 0), square, 1.0))
        energy = jnp.where(square > 0, pair_energy(distance, crystal), jnp.inf)
        return total + jnp.sum(jnp.where(near, energy, 0.0)) / 2, None

    total, _ = jax.lax.scan(add, jnp.zeros((), apart.dtype), jnp.asarray(image_grid(images)))
    return total


def lennard_jones(minimum: Callable[[Padded], Float[Array, "n n"]], cutoff: float) -> PairEnergy:
    """(m/r)^12 - 2 (m/r)^6 minus its value at the cutoff: a well of depth 1 at the distance m (Å) of each pair."""

    def well(ratio: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return ratio**12 - 2 * ratio**6

    def pair_energy(distance: Float[Array, "n n"], crystal: Padded) -> Float[Array, "n n"]:
        nearest = minimum(crystal)
        return well(nearest / distance) - well(nearest / cutoff)

    return pair_energy


def _touching(crystal: Padded) -> Float[Array, "n n"]:
    radii = jnp.asarray(element_table().covalent_radius_ang)[crystal.numbers]
    return radii[:, None] + radii[None]


def _problem(structure: "pymatgen.core.Structure") -> str:
    """Reason why a structure cannot be padded; empty if it can."""
    from pymatgen.core import DummySpecies

    if problem := defect(structure):
        return problem
    if not structure.is_ordered:
        return "sites with partial occupancy"
    dummies = any(isinstance(specie, DummySpecies) for specie in structure.species)
    return "sites that are no element" if dummies else ""


def _compact_cell(cell: Float[np.ndarray, "3 3"], cutoff: float) -> tuple[Float[np.ndarray, "3 3"], int | None]:
    """A cell of the same lattice, and the number of images that reaches `cutoff` in it; None if no level does."""
    needed = max(image_counts(cell, np.ones(3, bool), cutoff))
    if needed > IMAGE_LEVELS[0]:
        cell = minkowski_cell(cell)
        needed = max(image_counts(cell, np.ones(3, bool), cutoff))
    return cell, next((level for level in IMAGE_LEVELS if level >= needed), None)


def _padded(structure: "pymatgen.core.Structure", cell: Float[np.ndarray, "3 3"]) -> Padded:
    size = SMALLEST_SIZE
    while size < len(structure):
        size *= 2
    empty = size - len(structure)
    # Wrapped in float64, so that atoms far from the origin keep their precision in float32.
    positions = (structure.frac_coords % 1.0) @ structure.lattice.matrix
    return Padded(
        np.pad(np.array(structure.atomic_numbers, np.int32), (0, empty)),
        np.pad(positions.astype(np.float32), np.array([(0, empty), (0, 0)])),
        cell.astype(np.float32),
        np.arange(size) < len(structure),
    )
