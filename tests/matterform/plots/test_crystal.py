import matplotlib.figure
import numpy as np
import pytest
from matplotlib.patches import Circle

from matterform.plots.crystal import draw_crystal, formula_label, space_group_label


@pytest.mark.parametrize(
    ("number", "label"),
    [
        (1, "$P1$"),
        (2, r"$P\bar{1}$"),
        (14, "$P2_{1}/c$"),
        (63, "$Cmcm$"),
        (194, "$P6_{3}/mmc$"),
        (166, r"$R\bar{3}m$"),
        (225, r"$Fm\bar{3}m$"),
    ],
)
def test_space_groups_are_written_as_in_the_tables(number, label):
    assert space_group_label(number) == label


def test_counts_of_formulas_are_subscripts():
    assert formula_label("Ca3(PO4)2") == "Ca$_{3}$(PO$_{4}$)$_{2}$"


def test_atoms_on_faces_are_drawn_on_both_sides(rock_salt):
    # 8 corners + 6 faces of one element; 12 edges + the centre of the other. Each atom is a disc with two lights.
    axes = matplotlib.figure.Figure().add_subplot()
    draw_crystal(axes, rock_salt())
    circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert len(circles) == 3 * 27
    assert sorted({text.get_text() for text in axes.texts}) == ["Cl", "Na"]


def test_atoms_nearer_to_the_viewer_cover_those_behind(rock_salt):
    axes = matplotlib.figure.Figure().add_subplot()
    draw_crystal(axes, rock_salt())
    discs = [patch for patch in axes.patches if patch.get_linewidth() > 0]
    order = np.array([disc.get_zorder() for disc in discs])
    # Atoms far behind fade towards white.
    paleness = np.array([min(disc.get_facecolor()[:3]) for disc in discs])
    sodium = np.array([disc.radius for disc in discs]) == max(disc.radius for disc in discs)
    assert np.corrcoef(order[sodium], paleness[sodium])[0, 1] < -0.99


def test_everything_is_inside_the_frame(rock_salt):
    axes = matplotlib.figure.Figure().add_subplot()
    draw_crystal(axes, rock_salt())
    low, high = axes.get_xlim()
    for circle in axes.patches:
        assert low <= circle.center[0] - circle.radius
        assert circle.center[0] + circle.radius <= high
