"""A picture of a set of crystals: a gallery, and statistics compared with those of a reference."""

import collections
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from matterform.elements import element_table
from matterform.plots.crystal import draw_crystal, formula_label, space_group_label
from matterform.plots.curves import check_picture, save_figure

if TYPE_CHECKING:
    import pandas as pd
    import pymatgen.core
    from matplotlib.axes import Axes

INK, SOFT, GENERATED, REFERENCE = "#20262d", "#6b7580", "#4a7ba6", "#d98b3a"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#aab2ba",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "mathtext.fontset": "dejavusans",
}
ROWS, COLUMNS = 2, 4
MAX_ATOMS_DRAWN = 24
MAX_SLENDERNESS = 2.2  # longest over shortest edge; more slender cells are drawn only if there are too few others
NUM_SPACE_GROUPS, NUM_ELEMENTS = 12, 20

# Column of the table -> its name in the picture, and its meaning.
SHARES = {
    "valid": ("structurally valid", "no distance below 0.5 Å, own images included"),
    "valid_strict": ("valid, strict form", "distances against covalent radii; densities"),
    "valid_composition": ("composition valid", "charges balance (SMACT); MP-20 has about 90 %"),
    "space_group_kept": ("space group as requested", "found by spglib within 0.1 Å"),
    "space_group_kept_tight": ("space group, tight", "found by spglib within 0.01 Å"),
    "unique": ("unique", "matches no earlier crystal of the set"),
    "novel": ("novel", "matches no crystal of the reference"),
}


def write_picture(
    path: str | os.PathLike[str],
    structures: Sequence["pymatgen.core.Structure"],
    table: "pd.DataFrame",
    reference: "pd.DataFrame | None" = None,
    title: str = "Generated crystals",
    note: str = "as generated, not relaxed",
) -> None:
    """Writes a picture (.png, .pdf or .svg) with a gallery of crystals and the statistics of all of them.

    Args:
        table: the table of `evaluation.summary.evaluate` for `structures`.
        reference: the table of `evaluation.summary.tabulate` for crystals to compare with, usually the training set.
        note: remark in the heading, after the number of crystals.

    Raises:
        ValueError: `path` has another suffix.
        ImportError: matplotlib is not installed.
    """
    check_picture(path)
    matplotlib = _load_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(17, 12.5), dpi=130, facecolor="white")
        outer = figure.add_gridspec(
            2, 1, height_ratios=(1.9, 1), left=0.045, right=0.98, top=0.87, bottom=0.06, hspace=0.27
        )
        top = outer[0].subgridspec(1, 2, width_ratios=(3.3, 1), wspace=0.08)
        bottom = outer[1].subgridspec(1, 4, width_ratios=(1, 1, 1.1, 1.9), wspace=0.3)
        _write_heading(figure, reference, title, f"{len(table):,} crystals {note}")
        _draw_gallery(figure, top[0].subgridspec(ROWS, COLUMNS, hspace=0.34, wspace=0.1), structures, table)
        _draw_shares(figure.add_subplot(top[1]), table)
        atoms, density, groups, elements = (figure.add_subplot(cell) for cell in bottom)
        _draw_histogram(atoms, "num_atoms_primitive", table, reference, integers=True)
        atoms.set(title="Size of the cell", xlabel="atoms per primitive cell", ylabel="crystals (%)")
        _draw_histogram(density, "density_g_cm3", table, reference, integers=False)
        density.set(title="Density", xlabel="density (g/cm³)", ylabel="crystals (%)")
        atoms.locator_params(nbins=6, integer=True)
        density.locator_params(nbins=6, integer=True)
        _draw_space_groups(groups, table, reference)
        _draw_elements(elements, table, reference)
        save_figure(figure, path, dpi=130)


def _load_matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'matterform[viz]'") from error
    return matplotlib


def _write_heading(figure: Any, reference: "pd.DataFrame | None", title: str, subtitle: str) -> None:
    from matplotlib.patches import Patch

    figure.text(0.03, 0.97, title, fontsize=21, fontweight="bold", va="center")
    figure.text(0.03, 0.942, subtitle, fontsize=12, color=SOFT, va="center")
    if reference is None:
        return
    handles: list[Any] = [Patch(color=GENERATED, label="generated"), _reference_handle(len(reference))]
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.022, 0.378), ncols=2, frameon=False, fontsize=11)


def _reference_handle(count: int) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=REFERENCE, linewidth=2, marker="D", markersize=5, label=f"reference ({count:,} crystals)"
    )


def _draw_gallery(
    figure: Any, grid: Any, structures: Sequence["pymatgen.core.Structure"], table: "pd.DataFrame"
) -> None:
    for place, index in enumerate(choose_for_gallery(structures, table, ROWS * COLUMNS)):
        axes = figure.add_subplot(grid[place // COLUMNS, place % COLUMNS])
        draw_crystal(axes, structures[index])
        row = table.iloc[index]
        group = int(row["space_group"])
        symmetry = f"{space_group_label(group)}  ({group})" if group else "no space group"
        lengths = " × ".join(f"{length:.1f}" for length in structures[index].lattice.abc)
        axes.set_title(formula_label(row["formula"]), loc="center", fontsize=13, pad=24)
        axes.text(
            0.5, 1.035, f"{symmetry} · {lengths} Å", transform=axes.transAxes, ha="center", fontsize=9.5, color=SOFT
        )


def choose_for_gallery(structures: Sequence["pymatgen.core.Structure"], table: "pd.DataFrame", count: int) -> list[int]:
    """Indices of up to `count` valid crystals, as diverse as possible in space groups, then in elements."""
    drawable = [
        index
        for index, structure in enumerate(structures)
        if table["valid"].iloc[index] and structure.is_ordered and len(structure) <= MAX_ATOMS_DRAWN
    ]
    groups, elements = collections.Counter(), collections.Counter()
    chosen: list[int] = []
    while drawable and len(chosen) < count:
        best = min(
            drawable,
            key=lambda i: (
                max(structures[i].lattice.abc) > MAX_SLENDERNESS * min(structures[i].lattice.abc),
                groups[table["space_group"].iloc[i]],
                sum(elements[symbol] for symbol in _symbols(table["formula"].iloc[i])),
            ),
        )
        drawable.remove(best)
        chosen.append(best)
        groups[table["space_group"].iloc[best]] += 1
        elements.update(_symbols(table["formula"].iloc[best]))
    return chosen


def _draw_shares(axes: "Axes", table: "pd.DataFrame") -> None:
    shares = {name: 100 * float(table[name].mean()) for name in SHARES if name in table}
    places = len(SHARES) - 1 - np.arange(len(shares))
    axes.barh(places, [100] * len(shares), height=0.13, color="#e8ecf0")
    axes.barh(places, list(shares.values()), height=0.13, color=GENERATED)
    for place, (name, share) in zip(places, shares.items(), strict=True):
        label, meaning = SHARES[name]
        axes.text(0, place + 0.13, label, va="bottom", fontsize=12)
        axes.text(100, place + 0.13, f"{share:.1f} %", va="bottom", ha="right", fontsize=14, fontweight="bold")
        axes.text(0, place - 0.13, meaning, va="top", fontsize=9.5, color=SOFT)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(SHARES) - 0.35))
    axes.set_title("Quality (share of all crystals)", pad=24)
    axes.set_axis_off()


def _draw_histogram(
    axes: "Axes", column: str, table: "pd.DataFrame", reference: "pd.DataFrame | None", *, integers: bool
) -> None:
    tables = [table] if reference is None else [table, reference]
    values = [part[column].dropna().to_numpy(np.float64) for part in tables]
    # The last bar contains all larger values, so that a few outliers do not compress the rest into one bar.
    top = max((np.quantile(part, 0.99) for part in values if len(part)), default=1.0)
    edges = np.arange(0.5, np.ceil(top) + 1) if integers else np.linspace(0, np.ceil(top), 25)
    heights = [100 * np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] / max(len(part), 1) for part in values]
    axes.bar(edges[:-1], heights[0], np.diff(edges), align="edge", color=GENERATED, edgecolor="white", linewidth=0.6)
    if reference is not None:
        axes.stairs(heights[1], edges, color=REFERENCE, linewidth=2)
    axes.set_xlim(edges[0], edges[-1])


def _draw_space_groups(axes: "Axes", table: "pd.DataFrame", reference: "pd.DataFrame | None") -> None:
    shares = [
        collections.Counter((part["space_group"]).tolist())
        for part in ([table] if reference is None else [table, reference])
    ]
    names = [group for group, _ in shares[0].most_common() if group][:NUM_SPACE_GROUPS]
    places = np.arange(len(names))[::-1]
    axes.barh(places, [100 * shares[0][name] / len(table) for name in names], color=GENERATED, height=0.7)
    if reference is not None:
        axes.plot(
            [100 * shares[1][name] / len(reference) for name in names], places, "D", color=REFERENCE, markersize=5
        )
    axes.set_yticks(places, [f"{space_group_label(name)}  {name}" for name in names], fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.set(title="Most frequent space groups", xlabel="crystals (%)", xlim=(0, None))


def _draw_elements(axes: "Axes", table: "pd.DataFrame", reference: "pd.DataFrame | None") -> None:
    counts = [
        collections.Counter(symbol for formula in part["formula"] for symbol in _symbols(formula))
        for part in ([table] if reference is None else [table, reference])
    ]
    order = element_table().symbol.tolist()
    names = sorted((name for name, _ in counts[0].most_common(NUM_ELEMENTS)), key=order.index)
    places = np.arange(len(names))
    axes.bar(places, [100 * counts[0][name] / len(table) for name in names], color=GENERATED, width=0.7)
    if reference is not None:
        axes.plot(
            places, [100 * counts[1][name] / len(reference) for name in names], "D", color=REFERENCE, markersize=5
        )
    axes.set_xticks(places, names, fontsize=9.5)
    axes.tick_params(axis="x", length=0)
    axes.locator_params(axis="y", nbins=6, integer=True)
    axes.set(
        title="Most frequent elements, by atomic number",
        ylabel="crystals with the element (%)",
        xlim=(-0.7, len(names) - 0.3),
    )


def _symbols(formula: str) -> list[str]:
    return re.findall(r"[A-Z][a-z]?", formula)
