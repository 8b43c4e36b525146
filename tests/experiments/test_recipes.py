"""Recipes run as scripts, up to the training itself: their own commands parse, and flags replace what they set."""

import ast
import importlib
import pathlib
import re
import shlex
import sys
import types

import pytest

from crystalformer.rl import check_reward
from matterform.potentials.config import PotentialConfig

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
FILES = sorted(FOLDER.rglob("*.py"))
HOUSES = ("matterform", "crystalformer", "atomformer", "agedi")
# Rooms with public names of their own; cli is where commands start.
PUBLIC = ("crystalformer.rl", *(f"{family}.cli" for family in ("crystalformer", "atomformer", "agedi")))


def documented_commands() -> list[list[str]]:
    """The commands in the recipes' docstrings, from the script's name on."""
    commands = []
    for name in ("rl/ehull", "rl/dielectric", "rl/small", "rl/pairs"):
        text = (FOLDER / f"{name}.py").read_text(encoding="utf-8").replace("\\\n", " ")
        found = re.findall(rf"^    python experiments/({name}\.py .*)$", text, re.MULTILINE)
        assert found, f"{name} shows no command"
        commands += [shlex.split(command) for command in found]
    return commands


@pytest.fixture
def run_script(monkeypatch):
    """Runs a script with arguments, and gives the config that training would get."""
    configs = []

    def train(config, resume=False):
        configs.append(config)
        return types.SimpleNamespace(outcome="interrupted", epoch=0)

    monkeypatch.setattr("crystalformer.rl.ppo.train.train_ppo", train)
    monkeypatch.setattr("crystalformer.rl.dpo.train.train_dpo", train)

    def run(script: str, *arguments: str):
        import runpy

        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(FOLDER / script), run_name="__main__")
        assert stopped.value.code == 130
        return configs.pop()

    return run


@pytest.mark.parametrize("command", documented_commands(), ids=" ".join)
def test_the_commands_of_a_recipe_give_a_run_that_lacks_only_its_files(command, run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = run_script(*command)
    if command[0] == "rl/pairs.py":
        assert (config.chosen is None) != (config.scored is None)
    else:
        with pytest.raises(FileNotFoundError, match="does not exist"):
            check_reward(config.reward)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rl/ehull.py"], PotentialConfig()),
        (["rl/small.py", "stable"], PotentialConfig(threads=1)),
    ],
)
def test_chgnet_can_take_the_place_of_a_recipes_potential(arguments, expected, run_script):
    config = run_script(*arguments, "--convex_path", "hull", "--mlff_model", "chgnet")
    assert config.reward.potential == expected  # without what only another potential would understand


def test_flags_replace_what_a_recipe_sets(run_script):
    config = run_script("rl/dielectric.py", "--reward", "property", "--target", "3", "--beta", "0.5", "--epochs", "7")
    assert (config.reward.reward, config.reward.target, config.reward.fidelity) == (("property",), 3.0, 0)
    assert (config.objective.beta, config.epochs, config.batch_size) == (0.5, 7, 1000)
    config = run_script("rl/pairs.py", "--scored", "table.csv", "--beta", "0.5")
    assert (config.preference.beta, config.batch_size) == (0.5, 100)


def test_the_small_recipe_of_a_gap_needs_no_hull(run_script, tmp_path):
    check_reward(run_script("rl/small.py", "gap", "--property-path", str(tmp_path)).reward)


def test_the_small_recipe_that_distrusts_its_hull_asks_what_is_new(run_script, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("cif\n")
    with pytest.raises(ValueError, match="--novelty-bonus needs --novelty-reference"):
        check_reward(run_script("rl/small.py", "known", "--convex-path", str(table)).reward)
    flags = ("--convex-path", str(table), "--novelty-reference", str(table))
    check_reward(run_script("rl/small.py", "known", *flags).reward)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_recipes_import(path):
    if path.name == "band_gap_model.py":
        pytest.importorskip("matgl")
    importlib.import_module(".".join(path.relative_to(FOLDER.parent).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_recipes_use_public_names_only(path):
    if path.name == "common.py":
        pytest.skip("the one place for files and figures")
    found = [node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert [name for name in found if name.split(".")[0] in HOUSES and "." in name and name not in PUBLIC] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_the_public_names_of_recipes_exist(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    packages = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names} & set(HOUSES)
    uses = {
        (node.value.id, node.attr)
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages
    }
    missing = [f"{name}.{attr}" for name, attr in sorted(uses) if not hasattr(importlib.import_module(name), attr)]
    assert missing == []


def test_a_missing_data_file_says_where_it_comes_from(tmp_path):
    common = importlib.import_module("experiments.common")
    with pytest.raises(FileNotFoundError, match=r"carbon24_val.csv.gz does not exist; .*Pickard 2020"):
        common.data_file(tmp_path, "carbon")
    (tmp_path / "carbon24_val.csv.gz").touch()
    assert common.data_file(tmp_path, "carbon") == tmp_path / "carbon24_val.csv.gz"
