"""Inpainting: selected atoms of a structure are sampled around the others, which stay in place."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from agedi.checks import check_cell, check_known
from agedi.config import DiffusionConfig
from agedi.data.graph import from_atoms as graph_from_atoms
from agedi.diffusion import Diffusion
from agedi.sampling.config import InpaintConfig, SampleConfig, Selection
from agedi.sampling.options import configs_from_options
from agedi.sampling.parsing import parse_confinement
from agedi.sampling.request import InitialState, make_conditions
from agedi.sampling.sample import Sample, as_result, iterate_from
from agedi.sampling.selection import INPAINT_MASK, INPAINTED, select

if TYPE_CHECKING:
    import ase


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class InpaintRequest:
    """The atoms to inpaint, and what they are conditioned on."""

    selection: Selection = Selection()
    confinement: Any = None  # z_min and z_max in Å, for models with a confinement; none: those of the training data
    # values by name of a conditional model: a number, or one number per atom
    property: Mapping[str, Any] | None = None


def inpaint(
    diffusion: Diffusion, atoms: "ase.Atoms | Sequence[ase.Atoms]", *, as_atoms: bool = True, **options: Any
) -> list[Any]:
    """Samples selected atoms while the others stay exactly where they are.

    Atoms under FixAtoms are held fixed during the process, too; the other atoms that are not selected follow their
    forward process and return. See docs/formulas/agedi.md, section 8.

    Args:
        as_atoms: whether to return ASE Atoms instead of `AtomsGraph`s.
        options: fields of `Selection` (`indices`, `symbols`, `z_range`, `sphere`, `from_atoms`, `fraction`,
            `contiguous`, `freeze`), of `InpaintConfig` (`t_start`, `n_resample`, `jump_length`), `confinement`,
            `property`, and settings of sampling as in `agedi.sample`.

    Returns:
        `num_samples` structures, with the selection as per-atom array `inpaint_mask`; for a list of structures, a list
        of such lists.

    Raises:
        ValueError: the selection is empty, contains every atom or fixed ones, or an option is unknown or invalid.
    """
    import ase

    request, settings, config = configs_from_options(_with_tuples(options), InpaintRequest, InpaintConfig, SampleConfig)
    structures = [atoms] if isinstance(atoms, ase.Atoms) else atoms
    samples = iterate_inpainted(diffusion, structures, request, settings, config)
    results = [as_result(one, config.save_trajectory, as_atoms) for one in samples]
    if isinstance(atoms, ase.Atoms):
        return results
    return [results[first : first + config.num_samples] for first in range(0, len(results), config.num_samples)]


def iterate_inpainted(
    diffusion: Diffusion,
    structures: "Sequence[ase.Atoms]",
    request: InpaintRequest,
    settings: InpaintConfig,
    config: SampleConfig,
) -> Iterator[Sample]:
    """Yields `config.num_samples` of every structure as they are ready; checks everything before the first.

    Raises:
        ValueError: a structure or the selection is invalid; the message gives the index of the structure.
    """
    if not structures:
        raise ValueError("there is no structure to inpaint")
    states = []
    for number, atoms in enumerate(structures):
        try:
            rng = np.random.default_rng([config.seed, number])
            state = initial_state_of(diffusion.config, atoms, request, *select(atoms, request.selection, rng))
        except ValueError as error:
            raise ValueError(f"structure {number} ({atoms.get_chemical_formula() or 'empty'}): {error}") from error
        states += [state] * config.num_samples
    return iterate_from(diffusion, states, config, settings)


def initial_state_of(
    config: DiffusionConfig,
    atoms: "ase.Atoms",
    request: InpaintRequest,
    selected: Bool[np.ndarray, " n"],
    frozen: Bool[np.ndarray, " n"],
) -> InitialState:
    """The reference structure with its selected and its frozen atoms.

    Raises:
        ValueError: the structure does not fit the model or the request.
    """
    check_known(config, atoms.numbers, "it")
    check_cell(config, np.asarray(atoms.cell.array), atoms.pbc)
    walls = parse_confinement(config, request.confinement, np.asarray(atoms.cell.array), atoms.pbc)
    marked = atoms.copy()
    marked.set_array(INPAINT_MASK, selected)
    marked.info[INPAINTED] = np.flatnonzero(selected)
    held = atoms.copy()
    held.set_constraint(_fix(frozen))
    graph = graph_from_atoms(held, mask="MaskFixed", confinement=walls)
    return InitialState(marked, graph, make_conditions(config, request.property, len(atoms)), selected=selected)


def _with_tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the selectors as `Selection` takes them; `freeze` may be a mask, `sphere` (center, radius)."""
    changed = {name: value for name, value in options.items() if value is not None}
    if isinstance(changed.get("symbols"), str):
        changed["symbols"] = (changed["symbols"],)
    if "sphere" in changed:
        center, *radius = changed["sphere"]
        changed["sphere"] = tuple(map(float, (*np.ravel(center), *radius)))
    if "z_range" in changed:
        changed["z_range"] = tuple(map(float, changed["z_range"]))
    if "freeze" in changed and not isinstance(changed["freeze"], str):
        mask = np.asarray(changed["freeze"])
        changed["freeze"] = tuple(np.flatnonzero(mask).tolist() if mask.dtype == bool else changed["freeze"])
    return changed | {name: tuple(changed[name]) for name in ("indices", "symbols") if name in changed}


def _fix(which: Bool[np.ndarray, " n"]) -> list[Any]:
    from ase.constraints import FixAtoms

    return [FixAtoms(mask=which)] if which.any() else []
