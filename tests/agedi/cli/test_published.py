"""Published command lines are understood: their flags, their order, and quick starts that users paste."""

import dataclasses
import pathlib

import pytest

from agedi.cli import COMMANDS, main
from agedi.cli.published import understand
from matterform.arguments import UsageError, parse

BY_NAME = {command.name: command for command in COMMANDS}


def parsed(line: str):
    """The arguments that a line gives; for `train` its settings."""
    name, *words = line.split()
    found = parse(BY_NAME[name], "agedi", understand(BY_NAME[name], words))
    return found.config if name == "train" else found


def words(line: str) -> str:
    """The line in our words."""
    name, *rest = line.split()
    return " ".join(understand(BY_NAME[name], rest))


def test_quick_starts_of_training():
    config = parsed("train --noisers ConfinedCellPositions --mask MaskFixed --confinement 2 10 training_data.traj")
    assert config.data.train == pathlib.Path("training_data.traj")
    assert (config.diffusion.noisers, config.data.dataset.mask) == (("ConfinedCellPositions",), "MaskFixed")
    assert config.data.dataset.confinement == (2.0, 10.0)
    for line in ("--noisers CellPositions,Types x.traj", "x.traj --noisers CellPositions --noisers Types"):
        assert parsed(f"train {line}").diffusion.noisers == ("CellPositions", "Types")


def test_quick_starts_of_sampling():
    found = parsed("sample logs/agedi/version_0 -f Pd2O2 --template_path template.traj --steps 500 --confinement 2 10")
    assert (found.model, found.template) == (pathlib.Path("logs/agedi/version_0"), pathlib.Path("template.traj"))
    assert (found.formula, found.sampling.sampler.steps, found.sampling.confinement) == ("Pd2O2", 500, (2.0, 10.0))
    assert parsed("sample logs/agedi/version_0 --ff_guidance 5.0").sampling.config().guidance.guidance == 5.0
    line = "sample logs/agedi/version_0 --sampler ffpc --ffpc_terminal_steps 200 --ffpc_temperature 0.026"
    sampler = parsed(line).sampling.sampler
    assert (sampler.terminal_steps, sampler.temperature) == (200, 0.026)
    found = parsed("inpaint logs/agedi/version_0 structure.traj --symbols O --n_samples 4 --steps 500")
    assert (found.structures, found.selection.symbols) == (pathlib.Path("structure.traj"), ("O",))
    assert found.sampling.num_samples == 4
    assert parsed("predict logs/agedi/version_0 structures.traj").structures == pathlib.Path("structures.traj")
    assert parsed("inspect logs/agedi/version_0").model == pathlib.Path("logs/agedi/version_0")


def test_lists_may_be_joined_repeated_or_written_out():
    for line in ("--indices 0,1,-5", "--indices 0 1 -5", "--indices 0,1 --indices -5", "--indices 0, 1, -5"):
        assert parsed(f"inpaint run x.traj {line}").selection.indices == (0, 1, -5)
    found = parsed("inpaint run x.traj --symbols O H --freeze 0,1 --sphere_center 1 2 3 --sphere_radius 2.5")
    assert (found.selection.symbols, found.selection.freeze) == (("O", "H"), (0, 1))
    assert found.selection.sphere == (1.0, 2.0, 3.0, 2.5)
    assert parsed("inpaint run x.traj --freeze all").selection.freeze == "all"
    assert parsed("sample -c 5 5 7 run").cell == (5.0, 5.0, 7.0)
    assert parsed("sample run --confinement -1.5,4").sampling.confinement == (-1.5, 4.0)
    config = parsed("train x.traj -c gap,kind --conditioning_type scalar --conditioning_type integer")
    assert (config.diffusion.conditioning, config.diffusion.conditioning_type) == (
        ("gap", "kind"),
        ("scalar", "integer"),
    )


def test_properties_are_kept_apart():
    found = parsed("sample --property energy=-3.5 --property charge=0,1 --non_periodic run")
    assert (found.sampling.property, found.periodic) == (("energy=-3.5", "charge=0,1"), False)


def test_short_flags_with_another_meaning_elsewhere_are_explained(capsys):
    config = parsed("train x.traj -n Positions -f 8 -c gap -t 3")
    assert (config.diffusion.noisers, config.diffusion.feature_size) == (("Positions",), 8)
    assert (config.diffusion.conditioning, config.fit.loop.max_minutes) == (("gap",), 3.0)
    assert capsys.readouterr().err.splitlines() == [
        "agedi: -n is read as --noisers in train; it means --num-samples elsewhere",
        "agedi: -f is read as --feature-size in train; it means --formula elsewhere",
        "agedi: -c is read as --conditioning in train; it means --cell elsewhere",
        "agedi: -t is read as --max-minutes in train; it means --template elsewhere",
    ]
    parsed("train x.traj -e 3 -b 4 -r 5 -m PaiNN -s 1 -T 2")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-T 2 -t 3", "--max-minutes 123.0"),
        ("--max_time 0.5", "--max-minutes 30.0"),
        ("--max_time 0 --max_time_minutes 0 -e 5", "--epochs 5 --max-minutes None"),
        ("--epochs -1", "--epochs None"),
        ("--logger wandb --project oxides", "--tensorboard --wandb-project oxides"),
        ("--logger tensorboard", "--tensorboard --wandb-project None"),
        ("--checkpoint logs/version_0", "--run-dir logs/version_0 --resume"),
        ("--lr_factor 0.5 --lr_patience 10", "--lr-factor 0.5 --lr-patience 10"),
        ("--canonical_cell --no_progress_bar", "--canonical-cell --no-progress-bar"),
    ],
)
def test_published_flags_of_training_have_our_form(line, expected):
    words = understand(BY_NAME["train"], ["x.traj", *line.split()])[1:]
    assert (
        " ".join(words).replace("--plateau-factor", "--lr-factor").replace("--plateau-patience", "--lr-patience")
        == expected
    )


def test_settings_may_be_assigned(tmp_path):
    config = parsed(
        "train x.traj lr=1e-3 loss_scaling=1,0.5 force_field=true sigma_max=none loss_balance=80:20 epochs=7"
    )
    assert (config.fit.optimizer.learning_rate, config.diffusion.loss_scaling) == (1e-3, (1.0, 0.5))
    assert (config.diffusion.force_field, config.diffusion.sigma_max) == (True, None)
    assert (config.fit.loss_balance, config.fit.loop.epochs) == ("80:20", 7)
    assert words("train x.traj progress_bar=False mask=MaskFixed") == "x.traj --no-progress-bar --mask MaskFixed"
    with pytest.raises(UsageError, match="force_field must be true or false; got 'maybe'"):
        parsed("train x.traj force_field=maybe")


def test_a_yaml_file_may_be_the_input(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("noisers: [CellPositions, Types]\nlr: 1e-3\nepochs: 9\nbatch_size: 16\ndata_path: a.traj\n")
    config = parsed(f"train {path} -b 32 --epochs 8 epochs=7 mask=MaskFixed")
    assert (config.diffusion.noisers, config.data.train) == (("CellPositions", "Types"), pathlib.Path("a.traj"))
    assert (config.fit.optimizer.learning_rate, config.fit.batch_size, config.fit.loop.epochs) == (1e-3, 32, 7)
    assert config.data.dataset.mask == "MaskFixed"
    assert parsed(f"train --config {path} --lr 1e-4").fit.optimizer.learning_rate == 1e-4
    assert parsed(f"train {path} --noisers Positions").diffusion.noisers == ("Positions",)


def test_deprecated_and_wrong_forms_are_one_line(capsys):
    assert main(["sample", "run", "--steps", "--eps", "0.1"]) == 2
    assert "--steps needs a value" in capsys.readouterr().err
    assert main(["train", "x.traj", "--model", "SchNet"]) == 2
    assert "the network is PaiNN; got 'SchNet'" in capsys.readouterr().err
    assert main(["sample", "run", "--compile"]) == 2
    assert "sampling is always compiled" in capsys.readouterr().err
    assert main(["train-hydra", "nothing.yaml"]) == 2
    assert "nothing.yaml" in capsys.readouterr().err


def test_short_and_long_flags_mean_the_same():
    short = parsed("train x.traj -n Positions -f 8 -b 8 -r 3 -e 7 -T 2 -t 3")
    long = "--noisers Positions --feature-size 8 --batch_size 8 --cutoff 3 --epochs 7 --max-minutes 123"
    assert parsed(f"train x.traj {long}") == short
    assert dataclasses.replace(short, data=dataclasses.replace(short.data, train=None)) != short


def test_names_that_the_optimizer_has_too_mean_the_diffusion_where_the_published_package_says_so():
    config = parsed("train x.xyz --eps 1e-4 --schedule exponential")
    assert (config.diffusion.smallest_time, config.diffusion.noise_schedule) == (1e-4, "exponential")
    assert (config.fit.optimizer.adam_eps, config.fit.optimizer.schedule) == (1e-8, "plateau")
    assert parsed("train x.xyz --schedule cosine").fit.optimizer.schedule == "cosine"
