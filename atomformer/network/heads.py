"""Output heads on the encoder: energies, forces, masked tokens, coordinates, labels (docs/formulas/atomformer.md)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from atomformer.config import AtomformerConfig
from atomformer.network.parameters import layer_norm


class Outputs(NamedTuple):
    """Outputs for one structure; None where the model has no such head. Values in rows of padding are undefined."""

    hidden: Float[Array, "rows d"]  # row 0 is the system token, rows 1.. the atoms
    formation_energy: Float[Array, ""] | None = None  # eV; less the config's reference energies, like total_energy
    total_energy: Float[Array, ""] | None = None  # eV
    forces: Float[Array, "n 3"] | None = None  # eV/Å
    stress: Float[Array, "3 3"] | None = None  # eV/Å³, of periodic structures with conservative forces
    logits: Float[Array, "n vocab"] | None = None  # of the masked atoms' tokens
    coords: Float[Array, "n 3"] | None = None  # Å, denoised or relaxed
    labels: Float[Array, " labels"] | None = None  # in the labels' units, or logits of classes


def read_heads(
    heads: Mapping[str, Any], hidden: Float[Array, "rows d"], mask: Bool[Array, " n"], config: AtomformerConfig
) -> Outputs:
    """Applies every head that has parameters; conservative forces and coordinates are added by `add_derivatives`."""
    system, atoms = hidden[0], hidden[1:]
    found: dict[str, Array] = {}
    for name, leaves in heads.items():
        match name:
            case "formation_energy" | "total_energy":
                found[name] = _energy(linear_head(leaves, system)[0], mask, config)
            case "forces" | "total_forces":
                found["forces"] = config.energy.scale * linear_head(leaves, atoms)
            case "masked":
                found["logits"] = linear_head(leaves, atoms)
            case "coords" if not config.conservative:
                found["coords"] = linear_head(leaves, atoms)
            case "classification":
                found["labels"] = _labels(linear_head(leaves, system), config)
    return Outputs(hidden, **found)


def linear_head(leaves: Mapping[str, Any], x: Float[Array, "*s d"]) -> Float[Array, "*s e"]:
    """Linear(LayerNorm(x)); without the norm or the bias if the head has none."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = (layer_norm(leaves["norm"], x) if "norm" in leaves else x) @ leaves["w"]
    return y + jnp.broadcast_to(leaves["b"], y.shape) if "b" in leaves else y


def _energy(number: Float[Array, ""], mask: Bool[Array, " n"], config: AtomformerConfig) -> Float[Array, ""]:
    scale = config.energy.scale
    return number * scale * jnp.sum(mask) if config.energy.per_atom else number * scale


def _labels(numbers: Float[Array, " labels"], config: AtomformerConfig) -> Float[Array, " labels"]:
    if config.label_scale:
        numbers = numbers * jnp.asarray(config.label_scale)
    return numbers + jnp.asarray(config.label_mean) if config.label_mean else numbers


def add_derivatives(outputs, structure, heads, config: AtomformerConfig) -> Outputs:
    """`outputs(structure)` with forces (eV/Å), stress and denoised coordinates (Å) as derivatives of the energy.

    The stress (eV/Å³, ASE's sign) is the derivative by a symmetric strain of positions and cell, over the volume
    (docs/formulas/atomformer.md). It is meaningful only with three periodic directions; otherwise `predict_all` and
    the calculator leave it out.
    """

    def energy(positions: Float[Array, "n 3"], strain: Float[Array, "3 3"]) -> tuple[Float[Array, ""], Outputs]:
        deformation = jnp.eye(3, dtype=strain.dtype) + 0.5 * (strain + strain.T)
        cell = None if structure.cell is None else structure.cell @ deformation
        found = outputs(structure._replace(positions=positions @ deformation, cell=cell))
        return getattr(found, config.energy_head or ""), found  # every conservative config has an energy head

    no_strain = jnp.zeros((3, 3), structure.positions.dtype)
    (slope, virial), found = jax.grad(energy, argnums=(0, 1), has_aux=True)(structure.positions, no_strain)
    found = found._replace(forces=-slope)
    if structure.cell is not None:
        found = found._replace(stress=virial / jnp.abs(jnp.linalg.det(structure.cell)))
    if "coords" in heads:
        found = found._replace(coords=structure.positions - heads["coords"]["step"][0] * slope)
    return found
