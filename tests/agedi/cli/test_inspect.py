"""`agedi inspect`; what it prints of a run is tested in test_train.py."""

from agedi.cli.inspect import metrics_at


def test_the_last_values_up_to_a_step_are_found(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,validation_loss\n2,1.0,3.0\n4,0.5,\n6,0.25,2.0\n")
    assert metrics_at(path, 4) == {"loss": 0.5, "validation_loss": 3.0}
    assert metrics_at(path, 6) == {"loss": 0.25, "validation_loss": 2.0}
    assert metrics_at(tmp_path / "nothing.csv", 4) == {}
