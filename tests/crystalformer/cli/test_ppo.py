"""The command `crystalformer ppo`, up to the training itself: flags, recipes, and what is printed at the end."""

import pathlib

import pytest

from crystalformer.cli import main
from crystalformer.rl.config import ObjectiveConfig, PpoConfig, RewardConfig
from crystalformer.rl.ppo.train import PpoResult


@pytest.fixture
def configs(monkeypatch) -> list[PpoConfig]:
    """The settings that training gets; it finishes after two epochs."""
    given = []

    def train_ppo(config, resume=False):
        given.append(config)
        return PpoResult(2, "finished")

    monkeypatch.setattr("crystalformer.rl.ppo.train.train_ppo", train_ppo)
    return given


def test_flags_reach_the_settings(configs, capsys):
    flags = (
        "--reward pair my_rewards:density --weights 1 0.5 --run-dir runs/a --spacegroup 225 62 --beta 2 --batch-size 8"
    )
    assert main(["ppo", *flags.split(), "--baseline", "group", "--model", "start.pkl", "--threads", "2"]) == 0
    (config,) = configs
    assert config.reward.reward == ("pair", "my_rewards:density")
    assert config.reward.weights == (1.0, 0.5)
    assert config.reward.potential.threads == 2
    assert config.objective == ObjectiveConfig(beta=2.0, baseline="group")
    assert (config.spacegroup, config.batch_size) == ((225, 62), 8)
    assert config.weights.model == pathlib.Path("start.pkl")
    assert "finished after epoch 2; weights in runs/a/published" in capsys.readouterr().out


def test_flags_of_the_published_script_are_understood(configs):
    flags = (
        "--folder=runs/a --restore_path=start.pkl --batchsize=8 --mlff_model=orb --mlff_path=orb.ckpt --eps_clip=0.3"
    )
    assert main(["ppo", *flags.split(), "--convex_path=hull.json.bz2"]) == 0
    (config,) = configs
    assert (config.run_dir, config.weights.model) == (pathlib.Path("runs/a"), pathlib.Path("start.pkl"))
    assert (config.batch_size, config.objective.clip_ratio) == (8, 0.3)
    assert (config.reward.potential.mlff_model, config.reward.potential.mlff_path) == ("orb", pathlib.Path("orb.ckpt"))


def test_flags_override_a_recipe(configs):
    recipe = PpoConfig(run_dir=pathlib.Path("runs/b"), reward=RewardConfig(reward=("pair",)), epochs=7, ppo_epochs=3)
    assert main(["ppo", "--epochs=9"], recipe) == 0
    assert (configs[0].epochs, configs[0].ppo_epochs, configs[0].run_dir) == (9, 3, recipe.run_dir)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run-dir=new", "--spacegroup=0"], "spacegroup must lie in 1..230; got 0"),
        (["--run-dir=new", "--reward=hull"], "reward: expected one of ehull"),
        (["--run-dir=new", "--beta=-1"], "beta must not be negative"),
        (["--run-dir=new", "--resume"], "no run to resume"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2(arguments, words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ppo", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "new").exists()
