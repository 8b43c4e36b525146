"""Errors against what one computes by hand, and what evaluation makes of missing labels and of classes."""

import ase.build
import jax
import numpy as np
import pytest

from atomformer.checkpoint.published import Pretrained
from atomformer.config import AtomformerConfig
from atomformer.data.rows import row_from_atoms
from atomformer.network.parameters import init_params
from atomformer.network.transformer import make_apply
from atomformer.prediction.evaluation import Evaluation, energy_errors, evaluate, force_errors, write_parity

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def make_model():
    def make(**changes) -> Pretrained:
        config = AtomformerConfig(dim=16, num_heads=2, depth=1, k=8, heads=("classification",), **changes)
        return Pretrained(init_params(jax.random.key(0), config), config, make_apply(config))

    return make


def rows(*properties):
    return [row_from_atoms(ase.build.molecule("H2O"), properties=known) for known in properties]


def test_labels_that_a_structure_lacks_do_not_count(make_model):
    model = make_model(num_labels=3, label_names=("gap", "mu[0]", "mu[1]"), label_mean=(1.0, 2.0, 3.0))
    known = rows({"gap": 1.5}, {"gap": np.nan, "mu": [2.0, 5.0]}, {"gap": 2.0, "mu": [4.0, np.nan]}, {})
    found = evaluate(model, known)
    assert [found.metrics[f"{name}/count"] for name in model.config.label_names] == [2, 2, 1]
    assert [found.metrics[f"{name}/mae"] for name in model.config.label_names] == pytest.approx([0.75, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"label column nu must have one length .* no structure with it"):
        evaluate(model, known, label_columns=("gap", "nu"))


def test_classes_are_found_under_the_name_they_were_learned_by(make_model):
    model = make_model(num_labels=2, problem="multiclass", label_names=("kind[0]", "kind[1]"), label_mean=(0.0, 1.0))
    found = evaluate(model, rows({"kind": 1.0}, {"kind": 0.0}, {"kind": 1.0}, {"kind": 1.0}))
    assert found.metrics == {"kind/accuracy": 0.75, "kind/count": 4.0}


def test_energy_errors_are_in_mev_and_an_atom_in_each_structure():
    known, predicted, atoms = np.array([-1.0, -2.0]), np.array([-1.002, -1.994]), np.array([2, 3])
    found = energy_errors("total_energy", known, predicted, atoms)
    assert found == pytest.approx(
        {
            "total_energy/mae_mev": 4.0,
            "total_energy/rmse_mev": np.sqrt(20.0),
            "total_energy/mae_mev_per_atom": 1.5,
            "total_energy/rmse_mev_per_atom": np.sqrt(2.5),
            "total_energy/count": 2,
        }
    )


def test_energies_of_any_size_are_compared_in_double_precision():
    found = energy_errors("total_energy", np.array([-1e6]), np.array([-1e6 + 1e-5]), np.array([1]))
    assert found["total_energy/mae_mev"] == pytest.approx(0.01, rel=1e-4)


def test_force_errors_are_of_components_and_the_cosine_of_vectors():
    known = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    predicted = np.array([[4.0, 3.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -2.0]])
    found = force_errors(known, predicted)
    assert found["forces/mae_mev_per_ang"] == pytest.approx(1000 * 7 / 9)
    assert found["forces/rmse_mev_per_ang"] == pytest.approx(1000 * np.sqrt(19 / 9))
    assert found["forces/cosine"] == pytest.approx((24 / 25 - 1) / 2)  # a force of 0 has no direction
    assert found["forces/count"] == 9
    assert np.isnan(force_errors(np.zeros((2, 3)), np.ones((2, 3)))["forces/cosine"])


def test_a_task_chooses_its_metrics(make_model):
    model = make_model(num_labels=1, label_names=("labels",))
    found = evaluate(model, rows({"labels": 1.5}, {"labels": 0.5}), task="LBA")
    assert set(found.metrics) == {"labels/rmse", "labels/pearson", "labels/spearman", "labels/count"}
    with pytest.raises(ValueError, match="regression has no metric 'accuracy'"):
        evaluate(model, rows({"labels": 1.5}), task="RES")


def test_with_nothing_to_compare_the_heads_are_named(make_model):
    with pytest.raises(ValueError, match="no structure has a known value of what the model predicts: classification"):
        evaluate(make_model(num_labels=1, label_names=("gap",)), rows({}, {"mu": 1.0}))


def test_the_picture_has_a_panel_a_quantity_and_ignores_what_is_missing(tmp_path, monkeypatch):
    import matplotlib.figure

    saved, save = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, *a, **b: (saved.append(figure), save(figure, *a, **b))
    )
    pairs = {
        "total_energy": (np.array([-1000.0, -1002.0]), np.array([-1000.5, -1001.5])),
        "labels": (np.array([[1.0, np.nan], [2.0, 3.0]]), np.array([[1.5, 9.0], [2.5, 3.5]])),
    }
    write_parity(tmp_path / "parity.png", Evaluation({}, pairs))
    energy, labels = saved[0].axes
    np.testing.assert_allclose(energy.collections[0].get_offsets(), [[1.0, 0.5], [-1.0, -0.5]])  # about the mean
    assert energy.get_xlabel() == "known (eV)"
    np.testing.assert_allclose(labels.lines[0].get_xdata(), [1.0, 9.0])
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    # Classes have no such picture, and one of an earlier evaluation would be another's.
    write_parity(tmp_path / "parity.png", Evaluation({}, {"labels": (np.zeros((2, 1)), np.zeros((2, 3)))}))
    assert not (tmp_path / "parity.png").exists()
