"""Functions named as `module:name`."""

import sys

import pytest

from matterform.plugins import load_callable


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, whose modules are forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def load(target):
    return load_callable(target, "the reward", "module:function, such as my_rewards:hardness")


def test_modules_of_the_current_folder_are_found(folder):
    (folder / "own_rewards.py").write_text("def hardness(structures):\n    return [1.0]\n\nCONSTANT = 3\n")
    assert load("own_rewards:hardness")([]) == [1.0]
    (folder / "json.py").write_text("loads = None\n")
    assert load("json:loads")("3") == 3  # an installed module is not replaced by a file of the same name


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("hardness", r"the reward is named module:function, such as my_rewards:hardness; found 'hardness'"),
        (":hardness", "found ':hardness'"),
        ("absent_rewards:x", "importing absent_rewards for the reward absent_rewards:x raised ModuleNotFoundError"),
        ("faulty_rewards:x", "importing faulty_rewards for the reward .* raised ZeroDivisionError: division by zero"),
        ("own_rewards:CONSTANT", "own_rewards.py has no function or class CONSTANT"),
        ("own_rewards:softness", "own_rewards.py has no function or class softness"),
    ],
)
def test_what_cannot_be_loaded_is_named(folder, target, message):
    (folder / "own_rewards.py").write_text("CONSTANT = 3\n")
    (folder / "faulty_rewards.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=message):
        load(target)
