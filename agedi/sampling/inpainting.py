"""Drawing part of a structure anew, around atoms that stay."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from agedi.checks import check_counts, check_known
from agedi.config import DiffusionConfig
from agedi.data.graph import fixed_atoms
from agedi.data.graph import from_atoms as graph_from_atoms
from agedi.diffusion import Diffusion
from agedi.sampling.request import Start, check_cell, make_conditions, parse_confinement
from agedi.sampling.reverse import InpaintConfig, SamplerConfig
from agedi.sampling.sample import (
    Drawn,
    ForcefieldGuidanceConfig,
    as_result,
    draw_from,
    force_field_guidance,
    sampler_settings,
)

if TYPE_CHECKING:
    import ase

INPAINT_MASK = "inpaint_mask"  # per-atom array: selected, read with `from_atoms` and written to results
INPAINTED = "inpainted"  # the indices of these atoms in `info`, for files that do not keep per-atom arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which atoms to draw anew: all that some selector names, or without any a random `fraction` of the free ones."""

    indices: tuple[int, ...] | None = None  # negative ones count from the end
    symbols: tuple[str, ...] | None = None
    z_range: tuple[float, float] | None = None  # Å
    sphere: tuple[float, float, float, float] | None = None  # centre and radius in Å, nearest images
    from_atoms: bool = False  # those whose per-atom array `inpaint_mask` says so
    fraction: float = 0.25
    contiguous: bool = False  # the random ones next to each other
    freeze: tuple[int, ...] | Literal["all"] = ()  # held where they are, besides FixAtoms; "all" that is not selected

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1; got {self.fraction}")
        if self.z_range is not None and not (len(self.z_range) == 2 and self.z_range[0] <= self.z_range[1]):
            raise ValueError(f"z_range must be a lower and an upper height in angstrom; got {self.z_range}")
        if self.sphere is not None and not (len(self.sphere) == 4 and self.sphere[3] > 0):
            raise ValueError(f"sphere must be x, y, z and a positive radius in angstrom; got {self.sphere}")
        if self.contiguous and self.named:
            raise ValueError("contiguous is for a random selection; leave it out where atoms are named")

    @property
    def named(self) -> bool:
        """Whether atoms are named, rather than drawn."""
        return self.from_atoms or any(
            selector is not None for selector in (self.indices, self.symbols, self.z_range, self.sphere)
        )


def inpaint(
    diffusion: Diffusion,
    atoms: "ase.Atoms | Sequence[ase.Atoms]",
    *,
    indices: Sequence[int] | None = None,
    symbols: str | Sequence[str] | None = None,
    z_range: Sequence[float] | None = None,
    sphere: Sequence[float] | None = None,
    from_atoms: bool = False,
    fraction: float = 0.25,
    contiguous: bool = False,
    freeze: Sequence[int] | Literal["all"] = (),
    n_samples: int = 1,
    seed: int = 42,
    t_start: float = 1.0,
    n_resample: int = 1,
    jump_length: int = 1,
    confinement: Any = None,
    property: Mapping[str, Any] | None = None,
    guidance_weight: float | None = None,
    sampler: str = "em",
    steps: int = 500,
    eps: float = 1e-3,
    batch_size: int = 64,
    ff_guidance: float | ForcefieldGuidanceConfig | Mapping[str, Any] | None = None,
    save_trajectory: bool = False,
    sampler_kwargs: Mapping[str, Any] | None = None,
    progress_bar: bool = False,
    as_atoms: bool = True,
) -> list[Any]:
    """Draws selected atoms anew while the others stay exactly where they are.

    Atoms under FixAtoms are held fixed on the way, too; the other atoms that are not selected follow their forward
    process and return. The selection is the union of what `indices`, `symbols`, `z_range`, `sphere` and `from_atoms`
    name; without any it is random. See `Selection` for these, `agedi.sample` for the rest.

    Args:
        t_start: below 1 the selected atoms begin at their noised positions instead of anywhere.
        n_resample: passes over each step (Lugmayr et al. 2022), which make both parts fit each other better.
        jump_length: smaller steps that a step is divided into.

    Returns:
        `n_samples` structures, with the selection as per-atom array `inpaint_mask`; for a list of structures, a list of
        such lists.

    Raises:
        ValueError: the selection is empty, everything, or contradicts what is fixed, or an argument is wrong.
    """
    import ase

    selection = Selection(
        indices=None if indices is None else tuple(indices),
        symbols=None if symbols is None else ((symbols,) if isinstance(symbols, str) else tuple(symbols)),
        z_range=None if z_range is None else tuple(map(float, z_range)),  # pyright: ignore[reportArgumentType]
        sphere=None if sphere is None else tuple(map(float, sphere)),  # pyright: ignore[reportArgumentType]
        from_atoms=from_atoms,
        fraction=fraction,
        contiguous=contiguous,
        freeze="all" if isinstance(freeze, str) and freeze == "all" else tuple(freeze),  # pyright: ignore
    )
    guidance = force_field_guidance(ff_guidance)
    drawn = draw_inpainted(
        diffusion,
        [atoms] if isinstance(atoms, ase.Atoms) else atoms,
        selection,
        sampler_settings(sampler, steps, guidance_weight, property, guidance, {"eps": eps, **(sampler_kwargs or {})}),
        InpaintConfig(t_start=t_start, n_resample=n_resample, jump_length=jump_length),
        n_samples=n_samples,
        seed=seed,
        batch_size=batch_size,
        trajectory=save_trajectory,
        confinement=confinement,
        property=property,
        guidance=guidance,
        progress=progress_bar,
    )
    results = [as_result(one, save_trajectory, as_atoms) for one in drawn]
    if isinstance(atoms, ase.Atoms):
        return results
    return [results[first : first + n_samples] for first in range(0, len(results), n_samples)]


def draw_inpainted(
    diffusion: Diffusion,
    structures: "Sequence[ase.Atoms]",
    selection: Selection,
    settings: SamplerConfig,
    inpaint: InpaintConfig,
    *,
    n_samples: int = 1,
    seed: int = 42,
    batch_size: int = 64,
    trajectory: bool = False,
    confinement: Any = None,
    property: Mapping[str, Any] | None = None,
    guidance: ForcefieldGuidanceConfig | None = None,
    progress: bool = False,
) -> Iterator[Drawn]:
    """Yields `n_samples` of every structure as they come; everything is checked before the first."""
    check_counts(n_samples=n_samples, seed=seed)
    if not structures:
        raise ValueError("there is no structure to inpaint")
    starts = []
    for number, atoms in enumerate(structures):
        try:
            selected, frozen = select(atoms, selection, np.random.default_rng([seed, number]))
            start = start_of(diffusion.config, atoms, selected, frozen, confinement, property)
        except ValueError as error:
            raise ValueError(f"structure {number} ({atoms.get_chemical_formula() or 'empty'}): {error}") from error
        starts += [start] * n_samples
    return draw_from(
        diffusion,
        starts,
        settings,
        seed=seed,
        batch_size=batch_size,
        trajectory=trajectory,
        guidance=guidance,
        inpaint=inpaint,
        progress=progress,
    )


def start_of(
    config: DiffusionConfig,
    atoms: "ase.Atoms",
    selected: Bool[np.ndarray, " n"],
    frozen: Bool[np.ndarray, " n"],
    confinement: Any,
    property: Mapping[str, Any] | None,
) -> Start:
    """The reference structure, with its selected and its frozen atoms."""
    check_known(config, atoms.numbers, "it")
    check_cell(config, np.asarray(atoms.cell.array), atoms.pbc)
    walls = parse_confinement(config, confinement, np.asarray(atoms.cell.array), atoms.pbc)
    marked = atoms.copy()
    marked.set_array(INPAINT_MASK, selected)
    marked.info[INPAINTED] = np.flatnonzero(selected)
    held = atoms.copy()
    held.set_constraint(_fix(frozen))
    graph = graph_from_atoms(held, mask="MaskFixed", confinement=walls)
    return Start(marked, graph, make_conditions(config, property, len(atoms)), selected=selected)


def select(
    atoms: "ase.Atoms", selection: Selection, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The atoms to draw anew, and those held where they are.

    Raises:
        ValueError: the selection is empty or everything, or names what is fixed.
    """
    count = len(atoms)
    fixed = fixed_atoms(atoms, "MaskFixed")
    if selection.freeze != "all":
        fixed |= _at(selection.freeze, count, "freeze")
    if selection.named:
        selected = _named(atoms, selection) & ~fixed
        by_index = _at(selection.indices or (), count, "indices")
        if clash := np.flatnonzero(by_index & fixed).tolist():
            raise ValueError(f"indices name atoms that are fixed: {clash}")
    else:
        selected = _random(atoms, ~fixed, selection, rng)
    if not selected.any():
        raise ValueError("no atom is selected that is not fixed; choose other atoms to inpaint")
    if selected.all():
        raise ValueError("every atom is selected, so nothing is left to inpaint around; use sample")
    return selected, ~selected if selection.freeze == "all" else fixed


def _named(atoms: "ase.Atoms", selection: Selection) -> Bool[np.ndarray, " n"]:
    selected = _at(selection.indices or (), len(atoms), "indices")
    if selection.symbols is not None:
        symbols = np.array(atoms.get_chemical_symbols())
        if missing := [symbol for symbol in selection.symbols if symbol not in symbols]:
            raise ValueError(f"symbols must be among those of the structure; got {missing[0]!r}")
        selected |= np.isin(symbols, selection.symbols)
    if selection.z_range is not None:
        low, high = selection.z_range
        selected |= (low <= atoms.positions[:, 2]) & (atoms.positions[:, 2] <= high)
    if selection.sphere is not None:
        centre, radius = np.array(selection.sphere[:3]), selection.sphere[3]
        selected |= _distances(atoms, centre) <= radius
    if selection.from_atoms:
        if INPAINT_MASK in atoms.arrays:
            selected |= atoms.arrays[INPAINT_MASK].astype(bool)
        elif INPAINTED in atoms.info:
            selected |= _at(np.ravel(atoms.info[INPAINTED]).tolist(), len(atoms), INPAINTED)
        else:
            raise ValueError(f"from_atoms reads the selection from the per-atom array {INPAINT_MASK!r}; there is none")
    return selected


def _random(
    atoms: "ase.Atoms", free: Bool[np.ndarray, " n"], selection: Selection, rng: np.random.Generator
) -> Bool[np.ndarray, " n"]:
    """A fraction of all atoms, chosen among the free ones; if contiguous, each the nearest to those before."""
    choices = np.flatnonzero(free)
    wanted = min(max(1, round(selection.fraction * len(choices))), len(choices))
    selected = np.zeros(len(atoms), bool)
    if not wanted:
        return selected
    if not selection.contiguous:
        selected[rng.choice(choices, wanted, replace=False)] = True
        return selected
    distance, latest = np.where(free, np.inf, np.nan), rng.choice(choices)
    for _ in range(wanted):
        selected[latest], distance[latest] = True, np.nan
        distance = np.fmin(distance, np.where(np.isnan(distance), np.nan, _distances(atoms, atoms.positions[latest])))
        if selected.sum() < wanted:
            latest = np.nanargmin(distance)
    return selected


def _distances(atoms: "ase.Atoms", point: Float[np.ndarray, "3"]) -> Float[np.ndarray, " n"]:
    """Distances (Å) of all atoms to a point, of their nearest images."""
    from ase.geometry import get_distances

    return get_distances(point, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1][0]


def _at(indices: Sequence[int], count: int, name: str) -> Bool[np.ndarray, " n"]:
    wrong = [
        i for i in indices if isinstance(i, bool) or not isinstance(i, int | np.integer) or not -count <= i < count
    ]
    if wrong:
        raise ValueError(f"{name} must be whole numbers below the {count} atoms; got {wrong[0]!r}")
    chosen = np.zeros(count, bool)
    chosen[list(indices)] = True
    return chosen


def _fix(which: Bool[np.ndarray, " n"]) -> list[Any]:
    from ase.constraints import FixAtoms

    return [FixAtoms(mask=which)] if which.any() else []
