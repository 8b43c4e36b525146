"""A user's function as a reward: found by name, checked, and blamed by name."""

import os

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalformer.rl.reward.custom import custom_reward, load_function, open_workers

SALT = Structure(Lattice.cubic(3.5), ["Na", "Cl"] * 4, [[0, 0, i / 8] for i in range(8)])
IRON = Structure(Lattice.cubic(2.8), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])

MODULE = """
import os
import numpy as np

name = "not a function"

def count(structures):
    assert isinstance(structures, list)
    return [len(structure) for structure in structures]

def as_array(structures):
    return np.array([len(structure) for structure in structures], np.float32)

def process(structures):
    return [float(os.getpid())] * len(structures)

def batch(structures):
    return [float(len(structures))] * len(structures)

def one_number(structures):
    return 1.0

def too_few(structures):
    return [1.0] * (len(structures) - 1)

def column(structures):
    return np.ones((len(structures), 1))

def some_nan(structures):
    return [1.0, float("nan")]

def some_infinite(structures):
    return [float("inf"), 1.0]

def words(structures):
    return ["good", "bad"]

def nothing(structures):
    return None

def ragged(structures):
    return [[1.0], [1.0, 2.0]]

def fails(structures):
    raise RuntimeError("the license\\nhas run out")

def stops(structures):
    raise KeyboardInterrupt

def leaves(structures):
    raise SystemExit(0)

def dies(structures):
    os._exit(3)
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """The name of a module of rewards in the current folder."""
    name = f"rewards_of_{os.getpid()}_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)  # undone after the test
    monkeypatch.chdir(tmp_path)
    return name


def test_modules_of_the_current_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "lies_here_only.py").write_text("def one(structures): return [1.0] * len(structures)")
    monkeypatch.setattr("sys.path", [path for path in os.sys.path if path])
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(custom_reward("lies_here_only:one").score([SALT]).values, [1])


def test_a_function_is_not_asked_about_nothing(module):
    """`fails` raises whenever it is called."""
    assert custom_reward(f"{module}:fails").score([]).problems == []


@pytest.mark.parametrize("function", ["count", "as_array"])
def test_a_function_is_called_with_all_structures(module, function):
    reward = custom_reward(f"{module}:{function}", worst=-7.0)
    scores = reward.score([SALT, IRON])
    np.testing.assert_array_equal(scores.values, [8, 2])
    assert scores.problems == ["", ""]
    assert (reward.name, reward.worst) == (f"{module}:{function}", -7)
    np.testing.assert_array_equal(custom_reward(f"{module}:batch").score([SALT, IRON]).values, [2, 2])
    assert custom_reward(f"{module}:count").score([]).values.shape == (0,)


def test_values_below_the_worst_count_as_the_worst_and_are_logged_once(module, caplog):
    reward = custom_reward(f"{module}:count", worst=5.0)
    reward.score([SALT])
    assert not caplog.records
    for _ in range(2):
        np.testing.assert_array_equal(reward.score([SALT, IRON, IRON]).values, [8, 5, 5])
    assert len(caplog.messages) == 1
    assert f"2 of 3 values of the reward {module}:count lie below 5, " in caplog.text
    assert "lower --custom-worst" in caplog.text
    assert "the lowest value is 2" in caplog.text


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("one_number", r"must return one number for each of 2 structures; it returned an array of shape \(\)"),
        ("too_few", r"each of 2 structures; it returned an array of shape \(1,\)"),
        ("column", r"returned an array of shape \(2, 1\)"),
        ("some_nan", r"it returned nan for 1 of 2 structures, first for Fe: return its worst value instead"),
        ("some_infinite", r"it returned inf for 1 of 2 structures, first for NaCl"),
        ("words", r"must return numbers; it returned \['good', 'bad'\]"),
        ("nothing", r"must return numbers; it returned None"),
        ("ragged", r"raised ValueError: "),
        ("fails", r"raised RuntimeError: the license has run out$"),
        ("leaves", r"raised SystemExit: 0$"),
    ],
)
def test_what_a_function_does_wrong_is_one_line_with_its_name(module, function, words):
    reward = custom_reward(f"{module}:{function}")
    with pytest.raises(ValueError, match=words) as caught:
        reward.score([SALT, IRON])
    assert f"the reward {module}:{function} " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_original_error_is_the_cause(module):
    with pytest.raises(ValueError, match="RuntimeError") as caught:
        custom_reward(f"{module}:fails").score([SALT])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_interrupt_passes_through_a_function(module):
    with pytest.raises(KeyboardInterrupt):
        custom_reward(f"{module}:stops").score([SALT])


def test_names_without_a_function_are_refused(module, tmp_path):
    for target in ("density", ":density", "rewards:"):
        with pytest.raises(ValueError, match="named module:function, such as my_rewards:density; found"):
            load_function(target)
    with pytest.raises(ValueError, match=rf"{module}\.py has no function or class name"):
        load_function(f"{module}:name")
    with pytest.raises(ValueError, match="the reward sys:density: sys has no function or class density"):
        load_function("sys:density")  # which has no file
    with pytest.raises(ValueError, match=r"importing there_is_none for .* raised ModuleNotFoundError: No module named"):
        load_function("there_is_none:density")
    (tmp_path / "leaving_module.py").write_text("raise SystemExit(0)")
    with pytest.raises(ValueError, match=r"importing leaving_module for .* raised SystemExit: 0"):
        load_function("leaving_module:density")
    (tmp_path / "misspelt_module.py").write_text("def (:")
    with pytest.raises(ValueError, match=r"importing misspelt_module for .* raised SyntaxError"):
        load_function("misspelt_module:density")


def test_worker_processes_share_a_batch_in_order(module):
    structures = [SALT, IRON, IRON, SALT, IRON]
    with open_workers(2) as workers:
        assert workers is not None
        reward = custom_reward(f"{module}:count", workers=workers)
        np.testing.assert_array_equal(reward.score(structures).values, [8, 2, 2, 8, 2])
        np.testing.assert_array_equal(reward.score([SALT]).values, [8])
        assert reward.score([]).values.shape == (0,)
        batch = custom_reward(f"{module}:batch", workers=workers).score(structures).values
        np.testing.assert_array_equal(batch, [2, 2, 3, 3, 3])
        assert os.getpid() not in custom_reward(f"{module}:process", workers=workers).score(structures).values
        with pytest.raises(ValueError, match=f"the reward {module}:fails raised RuntimeError: the license has run out"):
            custom_reward(f"{module}:fails", workers=workers).score(structures)
        with pytest.raises(
            ValueError, match=f"the reward {module}:stops raised KeyboardInterrupt in its worker process"
        ):
            custom_reward(f"{module}:stops", workers=workers).score(structures)
        for _ in range(2):  # the second time, the pool refuses the work
            with pytest.raises(ChildProcessError, match=f"the reward {module}:dies ended its worker process"):
                custom_reward(f"{module}:dies", workers=workers).score(structures)


def test_no_worker_processes_are_none():
    with open_workers(0) as workers:
        assert workers is None
