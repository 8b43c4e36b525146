"""One crystal in projection: cell edges, atoms and bonds, drawn from back to front with matplotlib.

Why not pymatviz 0.18: its `structure_2d` makes plotly figures, which become PNG files only through kaleido and a
Chrome browser, and it does not draw into matplotlib's axes, of which the gallery is made.
"""

import itertools
import re
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from matterform.elements import element_table

if TYPE_CHECKING:
    import pymatgen.core
    from matplotlib.axes import Axes

ON_FACE = 0.02  # fractional; atoms this close to a face of the cell are drawn on the opposite face as well
RADIUS_SCALE = 0.42  # of covalent radii; small, so that atoms behind are visible
UNKNOWN_RADIUS_ANG = 1.7
FIRST_P_GROUP = 13
BOND_TOLERANCE = 1.15  # of the sum of covalent radii
TURN_DEG, TILT_DEG = 28.0, 14.0  # rotation of the view about the vertical axis, and its tilt
PREFERENCE_FOR_C = 1.5  # another edge is drawn upright only if it is longer than c by more than this factor
FOG = 0.45  # fraction of white mixed into the colour of the farthest atom
EDGE_PIECES = 12  # cell edges are drawn in pieces, so that they can pass behind and in front of atoms


def draw_crystal(axes: "Axes", structure: "pymatgen.core.Structure") -> None:
    """Draws one cell of an ordered crystal, with c or a much longer edge upright, and a legend of its elements."""
    numbers, frac = _with_images_on_faces(np.array(structure.atomic_numbers), structure.frac_coords)
    view = structure.lattice.matrix @ _view(structure.lattice.matrix)
    view_origin = view.sum(0) / 2
    points = frac @ view - view_origin
    span = max(float(np.ptp(points[:, 2])), 1e-6)
    fog = FOG * (points[:, 2].max() - points[:, 2]) / span
    _draw_edges(axes, view, view_origin)
    _draw_bonds(axes, numbers, points, fog)
    _draw_atoms(axes, numbers, points, fog)
    corners = np.array(list(itertools.product((0, 1), repeat=3))) @ view - view_origin
    reach = np.abs(points[:, :2]) + RADIUS_SCALE * _radii(numbers)[:, None]
    half = 1.03 * max(np.abs(corners[:, :2]).max(), reach.max())
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    axes.set_axis_off()
    _draw_key(axes, sorted(set(numbers.tolist())))


def space_group_label(number: int) -> str:
    """Hermann-Mauguin symbol as matplotlib's math text, with bars and screw axes: 225 is $Fm\\bar{3}m$."""
    import gemmi

    group = gemmi.find_spacegroup_by_number(number)
    words = group.hm.split()
    if 3 <= number <= 15:  # monoclinic: the two axes without symmetry are left out
        words = [word for word in words if word != "1"]
    words = [re.sub(r"^(\d)(\d)", r"\1_{\2}", re.sub(r"^-(\d)", r"\\bar{\1}", word)) for word in words]
    return f"${''.join(words)}$"


def formula_label(formula: str) -> str:
    """A reduced formula with its counts as subscripts, as math text."""
    return re.sub(r"(\d+(?:\.\d+)?)", r"$_{\1}$", formula)


def _view(cell: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """Matrix whose columns point right, up and to the viewer, with c (or a much longer edge) upright."""
    longest = int(np.argmax(np.linalg.norm(cell, axis=-1) * (1, 1, PREFERENCE_FOR_C)))
    up, side = np.roll(cell, 2 - longest, axis=0)[[2, 0]]
    up = up / np.linalg.norm(up)
    right = side - (side @ up) * up
    right /= np.linalg.norm(right)
    frame = np.stack([right, up, np.cross(right, up)], axis=-1)
    turn, tilt = np.radians(TURN_DEG), np.radians(TILT_DEG)
    about_vertical = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
    about_right = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    return frame @ about_vertical @ about_right


def _with_images_on_faces(
    numbers: Int[np.ndarray, " n"], frac: Float[np.ndarray, "n 3"]
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "m 3"]]:
    frac = frac % 1.0
    frac = np.where(frac > 1 - ON_FACE, frac - 1, frac)
    images = [
        (number, point + shift)
        for number, point in zip(numbers, frac, strict=True)
        for shift in itertools.product(*([0, 1] if x < ON_FACE else [0] for x in point))
    ]
    return np.array([number for number, _ in images]), np.array([point for _, point in images])


def _draw_edges(axes: "Axes", view: Float[np.ndarray, "3 3"], origin: Float[np.ndarray, "3"]) -> None:
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    depths = corners @ view[:, 2]
    for start, direction in itertools.product(range(8), range(3)):
        if corners[start, direction]:
            continue
        end = start + (4, 2, 1)[direction]
        hidden = depths.argmin() in (start, end)  # the three edges that meet at the farthest corner
        ends = corners[[start, end]] @ view - origin
        path = ends[0] + np.linspace(0, 1, EDGE_PIECES + 1)[:, None] * (ends[1] - ends[0])
        for piece in itertools.pairwise(path):
            (x0, y0, z0), (x1, y1, z1) = piece
            style = {"color": "#c9ced4", "linewidth": 0.8} if hidden else {"color": "#5b6570", "linewidth": 1.1}
            axes.plot([x0, x1], [y0, y1], zorder=10 + (z0 + z1) / 2, solid_capstyle="round", **style)


def _draw_bonds(
    axes: "Axes", numbers: Int[np.ndarray, " m"], points: Float[np.ndarray, "m 3"], fog: Float[np.ndarray, " m"]
) -> None:
    """Bonds of hydrogen and the p block; lines between metals would only hide the packing."""
    radii, colours = _radii(numbers), _colours(numbers, fog)
    binding = (element_table().group[numbers] >= FIRST_P_GROUP) | (numbers == 1)
    for i, j in itertools.combinations(range(len(points)), 2):
        if not (binding[i] or binding[j]) or np.linalg.norm(points[i] - points[j]) > BOND_TOLERANCE * (
            radii[i] + radii[j]
        ):
            continue
        middle = (points[i] + points[j]) / 2
        for end, colour in ((i, colours[i]), (j, colours[j])):
            x, y, z = zip(points[end], middle, strict=True)
            axes.plot(x, y, color=0.8 * colour, linewidth=2.2, zorder=10 + sum(z) / 2, solid_capstyle="butt")


def _draw_atoms(
    axes: "Axes", numbers: Int[np.ndarray, " m"], points: Float[np.ndarray, "m 3"], fog: Float[np.ndarray, " m"]
) -> None:
    from matplotlib.patches import Circle

    for radius, colour, (x, y, z) in zip(RADIUS_SCALE * _radii(numbers), _colours(numbers, fog), points, strict=True):
        zorder = 10 + z + radius
        axes.add_patch(Circle((x, y), radius, facecolor=colour, edgecolor=0.45 * colour, linewidth=0.7, zorder=zorder))
        for shrink, whiten in ((0.62, 0.22), (0.3, 0.55)):  # light from the upper left
            place = (x - 0.28 * radius, y + 0.28 * radius)
            bright = colour + whiten * (1 - colour)
            axes.add_patch(Circle(place, shrink * radius, facecolor=bright, linewidth=0, alpha=0.6, zorder=zorder))


def _draw_key(axes: "Axes", numbers: list[int]) -> None:
    symbols = element_table().symbol
    colours = _colours(np.array(numbers), np.zeros(len(numbers)))
    for place, (number, colour) in enumerate(zip(numbers, colours, strict=True)):
        x = 0.5 + 0.19 * (place - (len(numbers) - 1) / 2)
        axes.plot(
            x - 0.03, -0.045, "o", transform=axes.transAxes, clip_on=False, markersize=8, markerfacecolor=colour,
            markeredgecolor=0.45 * colour, markeredgewidth=0.7,
        )  # fmt: skip
        axes.text(x + 0.01, -0.045, str(symbols[number]), transform=axes.transAxes, va="center", fontsize=10)


def _radii(numbers: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    radii = element_table().covalent_radius_ang[numbers].astype(np.float64)
    return np.where(np.isnan(radii), UNKNOWN_RADIUS_ANG, radii)


def _colours(numbers: Int[np.ndarray, " m"], fog: Float[np.ndarray, " m"]) -> Float[np.ndarray, "m 3"]:
    """Jmol's colours, mixed with white by `fog`."""
    from ase.data.colors import jmol_colors

    colours = np.asarray(jmol_colors)[np.minimum(numbers, len(jmol_colors) - 1)]
    return colours + fog[:, None] * (1 - colours)
