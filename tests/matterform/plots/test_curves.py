"""Learning curves: which panels and lines a run's metrics make."""

import builtins

import matplotlib.figure
import numpy as np
import pytest

from matterform.plots.curves import new_figure, write_curves

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def remember(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", remember)
    return figures


def draw(folder, text):
    (folder / "metrics.csv").write_text(text)
    write_curves(folder / "metrics.csv", folder / "curves.png", title="a run")
    return folder / "curves.png"


def lines(axis):
    return {line.get_label(): np.column_stack(line.get_data()).tolist() for line in axis.lines}


def test_each_metric_with_validation_has_a_panel_with_both_lines(tmp_path, drawn):
    text = "step,epoch,loss,forces,grad_norm,validation_loss,validation_forces\n"
    text += "2,0.5,4.0,2.0,9.0,,\n4,1.0,3.0,1.5,8.0,3.5,1.75\n8,2.0,2.0,1.0,7.0,2.5,1.25\n"
    path = draw(tmp_path, text)
    assert path.read_bytes().startswith(PNG)
    loss, forces = drawn[0].axes
    assert (loss.get_title(), forces.get_title()) == ("loss", "forces")
    assert lines(loss) == {"training": [[0.5, 4], [1, 3], [2, 2]], "validation": [[1, 3.5], [2, 2.5]]}
    assert lines(forces) == {"training": [[0.5, 2], [1, 1.5], [2, 1]], "validation": [[1, 1.75], [2, 1.25]]}
    assert (loss.get_yscale(), loss.get_xlabel()) == ("log", "epoch")


def test_without_validation_the_loss_is_drawn_alone(tmp_path, drawn):
    draw(tmp_path, "step,epoch,loss,forces,grad_norm\n2,0.5,4.0,2.0,9.0\n4,1.0,3.0,1.5,8.0\n")
    (axis,) = drawn[0].axes
    assert lines(axis) == {"training": [[0.5, 4], [1, 3]]}


@pytest.mark.parametrize("value", ["0.0", "-1.0", "nan"])
def test_what_has_no_logarithm_is_drawn_on_a_linear_scale(tmp_path, drawn, value):
    draw(tmp_path, f"step,epoch,loss\n2,0.5,4.0\n4,1.0,{value}\n")
    assert drawn[0].axes[0].get_yscale() == "linear"


def test_a_run_without_a_row_gets_no_picture(tmp_path):
    assert not draw(tmp_path, "step,epoch,loss\n").exists()


def test_a_new_picture_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    (tmp_path / "curves.png").write_text("old")
    draw(tmp_path, "step,epoch,loss\n2,0.5,4.0\n")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "curves.png"}
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_rewards_are_drawn_with_quantiles_parts_and_shares(tmp_path, drawn):
    columns = "step,reward_mean,reward_q10,reward_q50,reward_q90,kl,failed_share,e_above_hull_mean,validation_loss"
    draw(tmp_path, f"{columns}\n1,-3,-4,-2,-1,0.5,0,3,\n2,-2,-3,-1,0,0.6,0.1,2,7\n")
    axes = drawn[0].axes
    titles = ["reward mean", "e above hull mean", "kl", "failed share", "validation loss"]
    assert [axis.get_title() for axis in axes] == titles
    assert lines(axes[0])["median, 10 to 90 %"] == [[1, -2], [2, -1]]
    assert lines(axes[4]) == {"_child0": [[2, 7]]}


def test_other_tables_and_suffixes_are_named(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,high\n")
    with pytest.raises(ValueError, match=r"metrics.csv is not a table of metrics: column loss holds 'high'"):
        write_curves(tmp_path / "metrics.csv", tmp_path / "x.png")
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"expected a picture's suffix, .png, .pdf, .svg; found .csv"):
        write_curves(tmp_path / "metrics.csv", tmp_path / "x.csv")
    write_curves(tmp_path / "metrics.csv", tmp_path / "x.pdf")
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_panels_stand_side_by_side():
    figure, axes = new_figure(3, "title")
    assert len(axes) == 3
    assert len({axis.get_position().y0 for axis in axes}) == 1
    assert figure.get_size_inches()[0] > 2 * figure.get_size_inches()[1]


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'matterform\[viz\]'"):
        new_figure(1)
