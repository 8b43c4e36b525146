"""Losses of pre-training and fine-tuning, for one structure (docs/formulas/atomformer.md).

The published losses are means over a batch: over the known energies, over the force components of all real atoms. Such
a mean couples the structures of a batch. Here the sum of each structure is divided by the average number of terms per
structure of the data set. The mean over the whole data set is then the published loss, and the loss of a structure
depends neither on the rest of its batch nor on the number of devices.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from atomformer.config import CLEAN_TERMS, CORRUPTED_TERMS, ENERGY_HEADS, FORCE_HEADS, AtomformerConfig, LossConfig
from atomformer.data.dataset import Dataset, atom_counts, pieces
from atomformer.data.examples import Requirements, StructureExample, stack_labels
from atomformer.data.structure import Structure
from atomformer.data.vocabulary import MASK
from atomformer.network.transformer import make_apply
from matterform.training.step import ExampleLoss, Metrics

VALIDATION_SEED = 0  # in validation, masks and noise of a structure are the same in every epoch and run


def required_heads(loss: LossConfig, conservative: bool) -> tuple[str, ...]:
    """The heads that the loss terms train, and an energy head if other outputs are derivatives of it."""
    forces = "total_forces" if loss.total_energy else "forces"
    by_term = {"forces": forces, "relaxed_coords": "coords", "denoising": "coords", "labels": "classification"}
    heads = [by_term.get(name, name) for name in loss.active]
    needs_energy = conservative and set(heads) & {"coords", *FORCE_HEADS} and not set(heads) & set(ENERGY_HEADS)
    return (*(["total_energy"] if needs_energy else []), *heads)


def requirements(loss: LossConfig, label_columns: tuple[str, ...] = ()) -> Requirements:
    """The columns of the data with the targets of the loss terms."""
    targets = tuple(name for name in loss.active if name in CLEAN_TERMS and name != "labels")
    return Requirements(targets, label_columns if loss.labels else ())


def average_counts(dataset: Dataset, loss: LossConfig, label_columns: tuple[str, ...] = ()) -> dict[str, float]:
    """The average number of values per structure of the data set in each loss term.

    Raises:
        ValueError: no structure has a target of a term.
    """
    size = len(atom_counts(dataset))
    counts: dict[str, float] = {}
    for name in loss.active:
        if name == "labels":
            known = int(np.isfinite(stack_labels(dataset, label_columns)).sum())
        elif name in ENERGY_HEADS:
            known = int(np.isfinite(dataset.structures[name]).sum())
        elif name == "forces":
            known = sum(int(np.isfinite(part).sum()) for part in pieces(dataset.atoms[name]))
        elif name in ("relaxed_coords", "denoising"):  # only of atoms that may move
            known = sum(int(np.isfinite(part[~held]).sum()) for part, held in _coordinates(dataset, name))
        else:
            sizes, times = np.unique(atom_counts(dataset), return_counts=True)
            known = float(np.dot([expected_masked(int(n), loss.mask_probability) for n in sizes], times))
        if not known:
            raise ValueError(f"no structure of the data has a value for {name}; leave that term out")
        counts[name] = known / size
    return counts


def expected_masked(atoms: int, probability: float | Literal["cosine"]) -> float:
    """Expected number of atoms that `choose_masked` masks in a structure."""
    if probability != "cosine":
        return probability * atoms
    # At least one, and one more for each m that is exceeded by the rounded cos(pi u / 2) x atoms.
    thresholds = (np.arange(1, atoms) + 0.5) / atoms
    return 1 + float(np.sum(np.arccos(thresholds))) * 2 / np.pi


def _coordinates(dataset: Dataset, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The target coordinates of a term, and which atoms are fixed, in pieces."""
    column = dataset.atoms["relaxed_coords" if name == "relaxed_coords" else "coords"]
    held = dataset.atoms.get("fixed", np.broadcast_to(np.False_, len(column)))
    return zip(pieces(column), pieces(held), strict=True)


def make_example_loss(config: AtomformerConfig, loss: LossConfig, counts: dict[str, float]) -> ExampleLoss:
    """The loss of one structure, with the mean error of each term as metrics.

    Metrics: `<term>` is the mean absolute error (eV, or eV/atom with `errors_per_atom`; eV/Å; Å; labels in units of
    their scale) or the cross-entropy (nats), `<term>_accuracy` the share of correct classes.

    Args:
        counts: the result of `average_counts` for the data set.
    """
    apply = make_apply(config)
    clean = [name for name in loss.active if name in CLEAN_TERMS]
    corrupted = [name for name in loss.active if name in CORRUPTED_TERMS]

    def example_loss(
        params: Any, key: PRNGKeyArray | None, example: StructureExample
    ) -> tuple[Float[Array, ""], Metrics]:
        clean_key = corrupted_key = None
        noise_key = jax.random.fold_in(jax.random.key(VALIDATION_SEED), example.index)
        if key is not None:
            clean_key, corrupted_key, noise_key = jax.random.split(key, 3)
        errors: dict[str, Errors] = {}
        if clean:
            outputs = apply(params, clean_key, example.structure)
            errors |= {name: clean_errors(name, outputs, example, config, loss) for name in clean}
        if corrupted:
            structure, hidden = corrupt(noise_key, example, loss)
            outputs = apply(params, corrupted_key, structure)
            errors |= {name: corrupted_errors(name, outputs, example, hidden) for name in corrupted}
        total = jnp.zeros(())
        metrics: Metrics = {}
        for name, (values, known, right) in errors.items():
            squared = loss.error == "l2" and right is None
            total += getattr(loss, name) * _known_sum(values**2 if squared else values, known) / counts[name]
            metrics[name] = _known_sum(values, known) / counts[name]
            if right is not None:
                metrics[f"{name}_accuracy"] = _known_sum(right.astype(values.dtype), known) / counts[name]
        return total, metrics

    return example_loss


def _known_sum(values: Float[Array, "*s"], known: Bool[Array, "*s"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(known, values, 0.0))


def metric_names(config: AtomformerConfig, loss: LossConfig) -> tuple[str, ...]:
    """Names of the metrics of `make_example_loss` besides the loss."""
    names = list(loss.active)
    if loss.masked:
        names.append("masked_accuracy")
    if loss.labels and config.problem != "regression":
        names.append("labels_accuracy")
    return tuple(names)


def corrupt(key: PRNGKeyArray, example: StructureExample, loss: LossConfig) -> tuple[Structure, Bool[Array, " n"]]:
    """The structure with masked tokens and displaced atoms, and which atoms are masked (none if the term is off)."""
    structure = example.structure
    mask_key, noise_key = jax.random.split(key)
    hidden = jnp.zeros_like(structure.mask)
    if loss.masked:
        hidden = choose_masked(mask_key, structure.mask, loss.mask_probability)
        structure = structure._replace(tokens=jnp.where(hidden, MASK, structure.tokens))
    if loss.denoising:
        noise = loss.noise_ang * jax.random.normal(noise_key, structure.positions.shape)
        moved = structure.positions + jnp.where(_movable(example)[:, None], noise, 0.0)
        structure = structure._replace(positions=moved)
    return structure, hidden


def choose_masked(
    key: PRNGKeyArray, mask: Bool[Array, " n"], probability: float | Literal["cosine"]
) -> Bool[Array, " n"]:
    """Which atoms to mask: each with `probability`, or for "cosine" a share cos(pi u / 2) with u ~ U(0, 1).

    The share is rounded to a number of at least one atom (eq. 13 of docs/formulas/atomformer.md).
    """
    share_key, order_key = jax.random.split(key)
    scores = jnp.where(mask, jax.random.uniform(order_key, mask.shape), 2.0)
    if probability != "cosine":
        return scores < probability
    atoms = jnp.sum(mask)
    share = jnp.cos(0.5 * jnp.pi * jax.random.uniform(share_key))
    number = jnp.maximum(jnp.round(share * atoms), 1).astype(jnp.int32)
    return mask & (jnp.argsort(jnp.argsort(scores)) < number)


def _movable(example: StructureExample) -> Bool[Array, " n"]:
    return example.structure.mask & ~example.fixed


class Errors(NamedTuple):
    """Errors of one structure in a loss term: absolute errors, or cross-entropies and whether the class is correct."""

    values: Float[Array, "*s"]
    known: Bool[Array, "*s"]  # False for padding and missing targets
    right: Bool[Array, "*s"] | None = None


def clean_errors(
    name: str, outputs: Any, example: StructureExample, config: AtomformerConfig, loss: LossConfig
) -> Errors:
    """Errors of the `Outputs` for the structure without corruption."""
    target = example.targets[name]
    known = jnp.isfinite(target)
    target = jnp.where(known, target, 0.0)  # NaN would spread to the gradient
    match name:
        case "forces" | "relaxed_coords":
            found = outputs.forces if name == "forces" else outputs.coords
            atoms = example.structure.mask if name == "forces" else _movable(example)
            return Errors(jnp.abs(found - target), known & atoms[:, None])
        case "labels":
            return label_errors(outputs.labels, target, known, config)
        case _:
            error = jnp.abs(getattr(outputs, name) - target)
            return Errors(error / jnp.sum(example.structure.mask) if loss.errors_per_atom else error, known)


def label_errors(
    outputs: Float[Array, " outputs"], target: Float[Array, " labels"], known: Bool[Array, " labels"], config
) -> Errors:
    """Absolute errors over the scale, binary cross-entropies of each label, or the cross-entropy of the class."""
    if config.problem == "regression":
        scale = np.asarray(config.label_scale or [1.0] * config.num_labels, np.float32)
        return Errors(jnp.abs(outputs - target) / scale, known)
    if config.problem == "binary":
        return Errors(optax.sigmoid_binary_cross_entropy(outputs, target), known, (outputs > 0) == (target > 0.5))
    index = target.astype(jnp.int32)
    entropy = -jax.nn.log_softmax(outputs)[index]
    return Errors(entropy, known, jnp.argmax(outputs)[None] == index)


def corrupted_errors(name: str, outputs: Any, example: StructureExample, hidden: Bool[Array, " n"]) -> Errors:
    """Errors of the `Outputs` for the corrupted structure, compared with the structure itself."""
    structure = example.structure
    if name == "denoising":
        movable = jnp.broadcast_to(_movable(example)[:, None], structure.positions.shape)
        return Errors(jnp.abs(outputs.coords - structure.positions), movable)
    log_probs = jax.nn.log_softmax(outputs.logits)
    entropy = -jnp.take_along_axis(log_probs, structure.tokens[:, None], axis=-1)[:, 0]
    return Errors(entropy, hidden, jnp.argmax(outputs.logits, axis=-1) == structure.tokens)
