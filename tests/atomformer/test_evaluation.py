"""What evaluation makes of rows that know only some of the labels, and of classes."""

import ase.build
import jax
import numpy as np
import pytest

from atomformer.config import AtomformerConfig
from atomformer.evaluation import evaluate
from atomformer.parameters import init_params
from atomformer.rows import row_from_atoms
from atomformer.transformer import make_apply
from atomformer.weights import Pretrained


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
