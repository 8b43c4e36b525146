"""What is written, and how a resumed run continues a file."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from matterform.training.metrics import StepMetrics, open_metrics, open_wandb


def write_rows(folder, steps, **options):
    writer = open_metrics(folder, ["loss", "validation_loss"], **options)
    for step in steps:
        row = {"loss": jnp.float32(1) / step} | ({"validation_loss": step / 3} if step % 2 == 0 else {})
        writer.write(step, row)
    writer.close()
    return (folder / "metrics.csv").read_text()


def test_rows_have_fixed_columns_and_exact_numbers(tmp_path):
    text = write_rows(tmp_path, [1, 2, 3])
    assert text.splitlines()[:3] == ["step,loss,validation_loss", "1,1.0,", "2,0.5,0.6666666666666666"]
    assert np.float32(text.splitlines()[3].split(",")[1]) == np.float32(1) / 3


def test_a_resumed_file_equals_the_uninterrupted_one(tmp_path):
    whole = write_rows(tmp_path / "whole", range(1, 9))
    write_rows(tmp_path / "cut", range(1, 7))
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write("7,0.1")  # the crash came in the middle of a row
    assert write_rows(tmp_path / "cut", range(5, 9), resumed_step=4) == whole


def test_wrong_files_and_metrics_are_refused(tmp_path):
    write_rows(tmp_path, [1])
    with pytest.raises(ValueError, match="exists already; resume that run or write to another folder"):
        write_rows(tmp_path, [1])
    with pytest.raises(ValueError, match="must have the columns"):
        open_metrics(tmp_path, ["other"], resumed_step=1)
    writer = open_metrics(tmp_path / "new", ["loss"])
    with pytest.raises(ValueError, match=r"got \['lost'\] as well"):
        writer.write(1, {"lost": 1.0})
    writer.close()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write_rows(tmp_path, [1, 2], tensorboard=True)
    [events] = tmp_path.glob("events.out.tfevents*")
    content = events.read_bytes()
    assert content.count(b"validation_loss") == 1
    assert np.float32(0.5).tobytes() in content


def test_missing_wandb_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"matterform\[wandb\]"):
        open_wandb("project", tmp_path)


def step_metrics(loss, nonfinite=0.0):
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1), "nonfinite": jnp.float32(nonfinite)}


def test_means_continue_from_saved_sums():
    whole, losses = StepMetrics(), [0.1, 0.2, 0.7]
    first = StepMetrics()
    for step, loss in enumerate(losses):
        whole.add(step, step_metrics(loss))
        if step < 2:
            first.add(step, step_metrics(loss))
    first.settle()
    second = StepMetrics(first.totals, first.count)
    second.add(2, step_metrics(losses[2]))
    whole.settle()
    second.settle()
    means = whole.take_means()
    assert means == second.take_means()
    assert means == pytest.approx({"loss": 1 / 3, "grad_norm": 1}, rel=1e-6)
    assert whole.take_means() == {}


def test_a_nonfinite_step_is_named():
    recent = StepMetrics()
    recent.add(41, step_metrics(np.nan, nonfinite=1.0))
    with pytest.raises(FloatingPointError, match=r"^step 41: expected a finite loss and gradient; found loss nan"):
        recent.settle()
