"""Energies, forces, labels and features of any number of structures, predicted in batches."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from atomformer.checkpoint.published import Pretrained
from atomformer.config import ENERGY_HEADS, AtomformerConfig
from atomformer.data.inputs import AnyStructure, reference_energy
from atomformer.data.rows import Row
from atomformer.data.structure import Structure
from atomformer.network.heads import Outputs
from atomformer.network.parameters import fold_params
from atomformer.network.transformer import Apply, encode
from atomformer.prediction.batching import MAX_PAIRS, evaluate_batches

if TYPE_CHECKING:
    import ase


class Prediction(NamedTuple):
    """The predictions for one structure; None where the model has no such head."""

    formation_energy: float | None = None  # eV, including reference energies, like total_energy
    total_energy: float | None = None  # eV
    forces: Float[np.ndarray, "n 3"] | None = None  # eV/Å
    stress: Float[np.ndarray, "3 3"] | None = None  # eV/Å³, ASE's sign; conservative, in three periodic directions
    logits: Float[np.ndarray, "n vocab"] | None = None  # of the atoms' tokens
    coords: Float[np.ndarray, "n 3"] | None = None  # Å, denoised or relaxed
    labels: Float[np.ndarray, " labels"] | None = None  # in the labels' units, or logits of classes
    probabilities: Float[np.ndarray, " labels"] | None = None  # of each label, or of each class
    system_features: Float[np.ndarray, " dim"] | None = None  # hidden states, if requested
    atom_features: Float[np.ndarray, "n dim"] | None = None

    @property
    def energy(self) -> float | None:
        """The energy (eV) that belongs to the forces: the total energy if the model has both."""
        return self.formation_energy if self.total_energy is None else self.total_energy


def predict(
    model: Pretrained, structures: Iterable[AnyStructure]
) -> tuple[Float[np.ndarray, " m"], list[Float[np.ndarray, "n 3"]]]:
    """Energies (eV, including reference energies) and forces (eV/Å) of m structures.

    Raises:
        ValueError: a structure cannot be used, or the model does not predict both energies and forces.
    """
    config = model.config
    if config.energy_head is None or not gives_forces(config):
        raise ValueError(f"the model has the heads {', '.join(config.heads)}, not energy and forces; use predict_all")
    predictions = list(predict_all(model, structures))
    energies = np.array([prediction.energy for prediction in predictions], np.float64)
    return energies, [prediction.forces for prediction in predictions if prediction.forces is not None]


def predict_all(
    model: Pretrained, structures: Iterable[AnyStructure], *, features: bool = False, max_pairs: int = MAX_PAIRS
) -> Iterator[Prediction]:
    """The outputs of all heads for each structure, in order; memory does not grow with the number of structures.

    Args:
        features: whether to return the hidden states of the system token and of the atoms too.
        max_pairs: largest number of pairs of atoms (or of edges, with explicit images) in a batch; a batch has at most
            a hundredth as many atoms, or a single structure.

    Raises:
        ValueError: a structure cannot be used; the message gives its index and the reason.
    """
    config = model.config
    function = _batched_outputs(model.apply, features)
    params = fold_params(model.params, config)
    for row, structure, outputs in evaluate_batches(functools.partial(function, params), config, structures, max_pairs):
        yield _prediction(row, structure, outputs, config)


def predict_rows(
    model: Pretrained, rows: Iterable[Row], *, features: bool = False, max_pairs: int = MAX_PAIRS
) -> Iterator[tuple[Row, Prediction]]:
    """Each row with its prediction, in order, as `predict_all`; only the rows in progress are kept in memory.

    Raises:
        ValueError: as `predict_all`.
    """
    pending: collections.deque[Row] = collections.deque()

    def remembered() -> Iterator[Row]:
        for row in rows:
            pending.append(row)
            yield row

    for prediction in predict_all(model, remembered(), features=features, max_pairs=max_pairs):
        yield pending.popleft(), prediction


def embed(
    model: Pretrained, structures: Iterable[AnyStructure], *, max_pairs: int = MAX_PAIRS
) -> tuple[Float[np.ndarray, "m dim"], list[Float[np.ndarray, "n dim"]]]:
    """Features of m structures: the encoder's last hidden states of the system token and of the atoms.

    Raises:
        ValueError: a structure cannot be used.
    """
    function = functools.partial(_batched_states(model.config), fold_params(model.params, model.config))
    system, atoms = [], []
    for row, _, hidden in evaluate_batches(function, model.config, structures, max_pairs):
        hidden = np.asarray(hidden, np.float32)
        system.append(hidden[0])
        atoms.append(hidden[1 : len(row["input_ids"]) + 1])
    return np.reshape(system, (-1, model.config.dim)), atoms


def annotate(atoms: "ase.Atoms", prediction: Prediction, label_names: Sequence[str] = ()) -> "ase.Atoms":
    """A copy of the atoms with energy, forces and stress in a calculator, coordinates in `arrays`, the rest in `info`.

    Probabilities, or else labels, go under their names, or without names as one vector; a formation energy beside a
    total one under its own. Logits of tokens and features are left out.
    """
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.stress import full_3x3_to_voigt_6_stress

    annotated = atoms.copy()
    stress = None if prediction.stress is None else full_3x3_to_voigt_6_stress(prediction.stress)
    results = {"energy": prediction.energy, "forces": prediction.forces, "stress": stress}
    annotated.calc = SinglePointCalculator(annotated, **results)  # omits results that are None
    if prediction.total_energy is not None and prediction.formation_energy is not None:
        annotated.info["formation_energy"] = prediction.formation_energy
    if prediction.coords is not None:
        annotated.set_array("predicted_coords", prediction.coords)
    name = "labels" if prediction.probabilities is None else "probabilities"
    values = getattr(prediction, name)
    if values is not None and label_names:
        annotated.info.update(zip(label_names, values.tolist(), strict=True))
    elif values is not None:
        annotated.info[name] = values
    return annotated


def gives_forces(config: AtomformerConfig) -> bool:
    """Whether the model predicts forces."""
    return config.conservative or any(name in config.heads for name in ("forces", "total_forces"))


def _prediction(row: Row, structure: Structure, outputs: Outputs, config: AtomformerConfig) -> Prediction:
    """The outputs for one structure without padding, in the caller's frame, and with references."""
    n = len(row["input_ids"])
    baseline = reference_energy(row["input_ids"], config)
    energies = {name: getattr(outputs, name) for name in ENERGY_HEADS}
    found: dict[str, Any] = {name: float(x) + baseline for name, x in energies.items() if x is not None}
    for name in ("forces", "logits", "coords"):
        if (values := getattr(outputs, name)) is not None:
            found[name] = values[:n]
    if outputs.coords is not None and config.conservative:  # steps from the positions, which were moved
        found["coords"] = outputs.coords[:n] + (row["coords"] - structure.positions)
    if outputs.stress is not None and structure.pbc is not None and structure.pbc.all():
        found["stress"] = outputs.stress
    if outputs.labels is not None:
        found |= {"labels": outputs.labels, "probabilities": _probabilities(outputs.labels, config)}
    if outputs.hidden is not None:
        hidden = outputs.hidden.astype(np.float32)
        found |= {"system_features": hidden[0], "atom_features": hidden[1 : n + 1]}
    return Prediction(**found)


def _probabilities(logits: Any, config: AtomformerConfig) -> np.ndarray | None:
    from scipy.special import expit, softmax

    match config.problem:
        case "binary":
            return expit(logits)
        case "multiclass":
            return softmax(logits)
    return None


@functools.lru_cache(maxsize=8)
def _batched_outputs(apply: Apply, features: bool) -> Callable[[Any, Structure], Outputs]:
    """The compiled network for a batch; kept, so that repeated calls with one model do not compile again."""

    def outputs(params: Any, structure: Structure) -> Outputs:
        found = apply(params, None, structure)
        return found if features else found._replace(hidden=None)

    return jax.jit(jax.vmap(outputs, in_axes=(None, 0)))


@functools.lru_cache(maxsize=8)
def _batched_states(config: AtomformerConfig) -> Callable[[Any, Structure], Any]:
    """The compiled encoder for a batch, without heads and derivatives."""
    return jax.jit(jax.vmap(lambda params, x: encode(params["encoder"], None, x, config), in_axes=(None, 0)))
