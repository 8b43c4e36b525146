"""Fine-tuning end to end with a function of the user's as reward: what is written, interruption, what is refused."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalformer.checkpoint.published import load_checkpoint, save_checkpoint
from crystalformer.cli import main
from crystalformer.config import WeightsConfig
from crystalformer.loss import log_prob
from crystalformer.rl.config import ObjectiveConfig, PpoConfig, RewardConfig
from crystalformer.rl.ppo.record import EpochWriter
from crystalformer.rl.ppo.train import spacegroup_frequencies, train_ppo
from crystalformer.rl.reward.base import Reward, make_scores
from crystalformer.symmetry.wyckoff import draw_spacegroups
from crystalformer.table import read_crystal_table
from matterform.io.formats import write_structures
from matterform.training.config import OptimizerConfig

pytestmark = pytest.mark.usefixtures("quick", "no_curves")

REWARDS = """
import os, pathlib, signal
import numpy as np

def lightness(structures):
    return [-s.composition.weight / 1000 for s in structures]

def nan_somewhere(structures):
    return [float("nan")] * len(structures)

def too_few(structures):
    return [0.0] * (len(structures) - 1)

def raises(structures):
    raise RuntimeError("the reward is broken")

def stops_once(structures):
    once("stopped", lambda: os.kill(os.getpid(), signal.SIGTERM))
    return lightness(structures)

def breaks_once(structures):
    def fail():
        raise RuntimeError("power cut")
    once("broken", fail)
    return lightness(structures)

def breaks_in_the_second_process(structures):
    import jax
    if jax.process_index() == 1:
        raise RuntimeError("only here")
    return lightness(structures)

def stops_the_group_once(structures):
    def stop():
        os.kill(os.getppid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    once("group", stop)
    return lightness(structures)

calls = []

def once(name, act):
    "Acts in the third epoch, after the trial and two epochs, and never again."
    calls.append(name)
    if calls.count(name) == 4:
        act()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, lively) -> pathlib.Path:
    """Weights to start from, and a module of rewards."""
    folder = tmp_path_factory.mktemp("tune")
    config = dataclasses.replace(tiny_config, n_max=3, num_layers=1)  # crystals of one length: one gradient to compile
    save_checkpoint(folder / "start.pkl", lively(config), config=config)
    (folder / "ppo_test_rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture(autouse=True)
def importable(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture(scope="module")
def base(folder) -> PpoConfig:
    return PpoConfig(
        run_dir=folder / "whole",
        weights=WeightsConfig(model=folder / "start.pkl"),
        reward=RewardConfig(reward=("ppo_test_rewards:lightness",)),
        spacegroup=(225, 221, 62),
        batch_size=12,
        epochs=4,
        ppo_epochs=2,
        part_size=8,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        save_every=2,
        publish_every=3,
    )


@pytest.fixture(scope="module")
def whole(base, folder) -> PpoConfig:
    """A finished run, the only one here that draws its curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        assert train_ppo(base) == (4, "finished")
    return base


@pytest.fixture
def no_curves(whole, monkeypatch):
    """Pictures take as long as everything else in a short run."""
    monkeypatch.setattr("crystalformer.rl.ppo.record.write_curves", lambda metrics, picture: None)


def rows_of(run_dir: pathlib.Path) -> list[dict[str, str]]:
    """The metrics of a run, without the seconds."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if not name.startswith("seconds")}
            for row in csv.DictReader(file)
        ]


def weights_of(run_dir: pathlib.Path, epoch: int):
    return load_checkpoint(run_dir / "published" / f"epoch_{epoch:06d}.pkl").params


def test_run_folder_tells_the_whole_story(whole, folder):
    run, rows = whole.run_dir, rows_of(whole.run_dir)
    assert [float(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert [float(row["optimizer_steps"]) for row in rows] == [2, 4, 6, 8]
    for row in rows:
        assert float(row["reward_q10"]) <= float(row["reward_q50"]) <= float(row["reward_q90"])
        expected = float(row["reward_mean"]) - 0.1 * float(row["kl"])
        assert float(row["objective"]) == pytest.approx(expected, rel=1e-6)
    assert abs(float(rows[0]["kl"])) < 1e-5  # the first samples come from the reference itself
    assert abs(float(rows[-1]["kl"])) > 1e-4
    lines = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    assert [sum(line["spacegroups"].values()) for line in lines] == [12] * 4
    assert {int(group) for line in lines for group in line["spacegroups"]} == {225, 221, 62}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    published = sorted(path.name for path in (run / "published").iterdir())
    assert published == ["epoch_000003.pkl", "epoch_000004.pkl"]
    start = load_checkpoint(folder / "start.pkl")
    assert load_checkpoint(run / "published" / "epoch_000004.pkl").config == start.config
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), dict(start.params), dict(weights_of(run, 4)))
    assert any(jax.tree.leaves(changed))


def test_saved_samples_carry_their_rewards(whole):
    path = whole.run_dir / "samples" / "epoch_000004.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    crystals = read_crystal_table(path, n_max=3)
    assert len(rows) == len(crystals.G) == 12
    mean = np.mean([float(row["reward"]) for row in rows])
    assert mean == pytest.approx(float(rows_of(whole.run_dir)[-1]["reward_mean"]), rel=1e-6)


def interrupted(base, folder, name: str, function: str) -> PpoConfig:
    return dataclasses.replace(
        base, run_dir=folder / name, reward=RewardConfig(reward=(f"ppo_test_rewards:{function}",))
    )


def test_interrupted_run_resumes_to_the_same_numbers(whole, base, folder):
    config = interrupted(base, folder, "stopped", "stops_once")
    assert train_ppo(config) == (2, "interrupted")
    assert len(rows_of(config.run_dir)) == 2
    assert train_ppo(config, resume=True) == (4, "finished")
    assert rows_of(config.run_dir) == rows_of(whole.run_dir)
    jax.tree.map(np.testing.assert_array_equal, weights_of(config.run_dir, 4), weights_of(whole.run_dir, 4))
    lines = [(path / "epochs.jsonl").read_text() for path in (config.run_dir, whole.run_dir)]
    assert lines[0] == lines[1]


def test_signal_to_the_workers_as_well_is_an_interruption(whole, base, folder):
    """As `scancel` and `timeout` send it."""
    config = interrupted(base, folder, "group", "stops_the_group_once")
    config = dataclasses.replace(config, reward=dataclasses.replace(config.reward, reward_workers=1))
    assert train_ppo(config) == (2, "interrupted")
    assert train_ppo(config, resume=True) == (4, "finished")
    assert rows_of(config.run_dir) == rows_of(whole.run_dir)


def test_epoch_in_which_every_crystal_fails_is_not_learned_from(base, folder, monkeypatch):
    calls = []

    def score(structures):
        calls.append(len(structures))
        broken = "RuntimeError: CUDA error" if len(calls) > 3 else ""  # the trial and two epochs are well
        return make_scores(np.zeros(len(structures)), [broken] * len(structures), -9.0)

    monkeypatch.setattr(
        "crystalformer.rl.ppo.train.open_reward", lambda config: contextlib.nullcontext(Reward("gpu", score, -9.0))
    )
    config = dataclasses.replace(base, run_dir=folder / "cuda")
    with pytest.raises(ValueError, match=r"reward gpu failed for all of 12 crystals of epoch 3: .* CUDA error"):
        train_ppo(config)
    assert len(rows_of(config.run_dir)) == 2
    calls.clear()
    assert train_ppo(dataclasses.replace(config, epochs=3), resume=True) == (3, "finished")


def test_resumed_run_must_find_the_same_data(base, folder, tmp_path):
    groups = tmp_path / "groups.csv"
    write_structures(
        groups, [Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0] * 3, [0.5] * 3])]
    )
    config = dataclasses.replace(base, run_dir=folder / "data", spacegroup=(), spacegroups_from=groups, epochs=1)
    train_ppo(config)
    moved = tmp_path / "moved.csv"
    groups.rename(moved)
    longer = dataclasses.replace(config, spacegroups_from=moved, epochs=2)
    assert train_ppo(longer, resume=True) == (2, "finished")
    write_structures(
        groups, [Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.6), ["Na", "Cl"], [[0] * 3, [0.5] * 3])]
    )
    with pytest.raises(
        ValueError, match=r"cannot resume with other data: the run has space groups \d+, but .*groups\.csv gives"
    ):
        train_ppo(dataclasses.replace(longer, spacegroups_from=groups, epochs=3), resume=True)


def test_processes_share_a_batch_evenly_or_not_at_all(base, folder, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the number of processes; got 12, 5"):
        train_ppo(dataclasses.replace(base, run_dir=folder / "uneven"))
    assert not (folder / "uneven").exists()


def test_run_that_dies_half_way_leaves_a_state_to_resume(whole, base, folder):
    config = interrupted(base, folder, "broken", "breaks_once")
    with pytest.raises(ValueError, match=r"ppo_test_rewards:breaks_once.*power cut"):
        train_ppo(config)
    assert train_ppo(config, resume=True) == (4, "finished")
    assert rows_of(config.run_dir) == rows_of(whole.run_dir)


def test_death_while_an_epoch_is_written_loses_nothing(whole, base, folder, monkeypatch):
    config = dataclasses.replace(base, run_dir=folder / "died")
    write = EpochWriter.write

    def dying_write(self, epoch, row, rollout):
        write(self, epoch, row, rollout)
        if epoch == 3:
            raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(EpochWriter, "write", dying_write)
        with pytest.raises(OSError, match="no space left"):
            train_ppo(config)
    # With other means of computing, which a resumed run may have.
    assert train_ppo(dataclasses.replace(config, part_size=3), resume=True) == (4, "finished")
    assert [row["step"] for row in rows_of(config.run_dir)] == [row["step"] for row in rows_of(whole.run_dir)]
    names = [sorted(path.name for path in (run / "published").iterdir()) for run in (config.run_dir, whole.run_dir)]
    assert names[0] == names[1]


def test_part_size_changes_nothing_but_rounding(whole, base, folder):
    config = dataclasses.replace(base, run_dir=folder / "parts", part_size=3, epochs=1)
    train_ppo(config)
    first, other = rows_of(whole.run_dir)[0], rows_of(config.run_dir)[0]
    for name in ("loss", "ratio", "grad_norm", "reward_mean", "entropy"):
        assert float(other[name]) == pytest.approx(float(first[name]), rel=1e-4), name


@pytest.mark.slow
def test_reward_rises(base, folder):
    # Heavy elements cost most; the trial uses other samples, so this is the mean over fresh ones each epoch.
    config = dataclasses.replace(
        base,
        run_dir=folder / "rising",
        batch_size=64,
        epochs=12,
        ppo_epochs=4,
        objective=ObjectiveConfig(beta=0.0, baseline="group"),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        save_every=100,
        publish_every=100,
    )
    train_ppo(config)
    rows = rows_of(config.run_dir)
    before, after, error = (
        float(rows[i][name]) for i, name in ((0, "reward_mean"), (-1, "reward_mean"), (0, "reward_error"))
    )
    assert after - before > 4.5 * error


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nan_somewhere", "ppo_test_rewards:nan_somewhere.*nan"),
        ("too_few", "ppo_test_rewards:too_few"),
        ("raises", "ppo_test_rewards:raises.*the reward is broken"),
        ("absent", "absent"),
    ],
)
def test_wrong_rewards_are_one_line_and_leave_nothing_behind(function, message, folder, capsys):
    run = folder / f"wrong_{function}"
    start = str(folder / "start.pkl")
    status = main(["ppo", "--model", start, "--reward", f"ppo_test_rewards:{function}", "--run-dir", str(run)])
    complaint = capsys.readouterr().err.strip()
    assert status == 2
    assert len(complaint.splitlines()) == 1
    assert re.search(message, complaint)
    assert not run.exists()


def test_other_mistakes_are_refused(base, folder, whole):
    with pytest.raises(ValueError, match="holds a run already"):
        train_ppo(base)
    with pytest.raises(ValueError, match="no run to resume"):
        train_ppo(dataclasses.replace(base, run_dir=folder / "nothing"), resume=True)
    with pytest.raises(ValueError, match="cannot resume with another batch_size"):
        train_ppo(dataclasses.replace(base, batch_size=24), resume=True)
    with pytest.raises(ValueError, match="sft_epochs needs relaxed samples"):
        train_ppo(dataclasses.replace(base, run_dir=folder / "sft", sft_epochs=1))
    with pytest.raises(ValueError, match="spacegroup must lie in"):
        dataclasses.replace(base, spacegroup=(0,))
    with pytest.raises(ValueError, match="ppo_epochs or sft_epochs"):
        dataclasses.replace(base, ppo_epochs=0)


def test_space_groups_are_drawn_as_asked(base):
    frequencies = spacegroup_frequencies(base, load_checkpoint(base.weights.model).config)
    assert np.flatnonzero(frequencies).tolist() == [61, 220, 224]
    drawn = draw_spacegroups(frequencies, 30_000, [1])
    error = (30_000 * (1 / 3) * (2 / 3)) ** 0.5
    assert np.abs(np.bincount(drawn)[[62, 221, 225]] - 10_000).max() < 4.5 * error


def test_samples_and_rewards_do_not_depend_on_the_number_of_devices(base, folder):
    """Four devices in another process draw the same crystals and end at the same weights as one."""
    config = dataclasses.replace(base, run_dir=folder / "four", epochs=2, batch_size=16)
    one = dataclasses.replace(config, run_dir=folder / "one")
    train_ppo(one)
    command = [*command_of(folder), "--epochs=2", "--batch-size=16", f"--run-dir={config.run_dir}"]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    # What `quick` sets, for another process.
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    subprocess.run(command, env=environment, check=True)
    compare_runs(config.run_dir, one.run_dir)


def command_of(folder: pathlib.Path, reward: str = "lightness") -> list[str]:
    """The settings of `base` as a command of another process."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from crystalformer.cli import main; sys.exit(main())"
    flags = [f"--model={folder / 'start.pkl'}", "--reward", f"ppo_test_rewards:{reward}", "--spacegroup"]
    flags += ["225", "221", "62", "--batch-size=12", "--ppo-epochs=2", "--part-size=8", "--learning-rate=3e-3"]
    return [sys.executable, "-c", code, str(folder), "ppo", *flags]


def compare_runs(one: pathlib.Path, other: pathlib.Path) -> None:
    for first, second in zip(rows_of(one), rows_of(other), strict=True):
        for name in ("reward_mean", "entropy", "loss", "grad_norm"):
            assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-4, abs=1e-5), name


@pytest.fixture
def relaxing(monkeypatch):
    """A reward that hands back what it got as relaxed; small cells are good."""

    @contextlib.contextmanager
    def open_relaxing(config):
        def score(structures):
            small = np.array([-len(structure) / 100 for structure in structures])
            return make_scores(small, [""] * len(small), -10.0, relaxed=list(structures))

        yield Reward("relaxing", score, -10.0)

    monkeypatch.setattr("crystalformer.rl.ppo.train.open_reward", open_relaxing)


def test_sft_makes_good_relaxed_samples_likelier(base, folder, relaxing):
    config = dataclasses.replace(
        base, run_dir=folder / "relaxed", ppo_epochs=0, sft_epochs=5, sft_min_reward=-0.5, epochs=1
    )
    assert train_ppo(config) == (1, "finished")
    (row,) = rows_of(config.run_dir)
    with (config.run_dir / "samples" / "epoch_000001.csv").open(newline="") as file:
        good = np.array([float(row["reward"]) >= -0.5 for row in csv.DictReader(file)])
    assert 0 < float(row["sft_crystals"]) <= good.sum() < len(good)
    assert row["loss"] == ""  # no step of PPO
    assert np.isfinite([float(row["sft_loss"]), float(row["sft_grad_norm"])]).all()
    crystals = jax.tree.map(
        lambda x: x[good], read_crystal_table(config.run_dir / "samples" / "epoch_000001.csv", n_max=3)
    )
    start = load_checkpoint(folder / "start.pkl")
    before = log_prob(start.params, start.config, crystals).total
    after = log_prob(weights_of(config.run_dir, 1), start.config, crystals).total
    assert after.mean() > before.mean() + 0.1


@pytest.mark.slow
def test_two_processes_train_ppo_as_one(base, folder, reserved_port):
    """Two real processes on this machine share sampling, rewards and gradients, and write the numbers of one."""
    one = dataclasses.replace(base, run_dir=folder / "alone", epochs=2)
    train_ppo(one)
    command = [*command_of(folder), "--epochs=2", f"--run-dir={folder / 'two'}"]
    assert [status for status, _ in run_two(reserved_port, command)] == [0, 0]
    compare_runs(folder / "two", one.run_dir)


@pytest.mark.slow
def test_reward_that_fails_in_one_process_ends_both(folder, reserved_port):
    command = [*command_of(folder, "breaks_in_the_second_process"), f"--run-dir={folder / 'both_end'}"]
    (first, its_words), (second, other_words) = run_two(reserved_port, command)
    assert (first, second) == (2, 2)
    assert "the reward failed in process 1" in its_words
    assert "only here" in other_words


def run_two(reserved_port, command: list[str]) -> list[tuple[int, str]]:
    """Status and standard error of a command in two processes that work together."""
    with reserved_port() as port, contextlib.ExitStack() as stack:
        words = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
        flags = [f"--coordinator=localhost:{port}", "--num-processes=2"]
        both = [
            subprocess.Popen([*command, *flags, f"--process-id={number}"], stderr=file)
            for number, file in enumerate(words)
        ]
        statuses = [process.wait(timeout=300) for process in both]
        for file in words:
            file.seek(0)
        return [(status, file.read()) for status, file in zip(statuses, words, strict=True)]


def test_sft_that_diverges_is_not_saved(base, folder, relaxing):
    config = dataclasses.replace(
        base,
        run_dir=folder / "diverging",
        ppo_epochs=0,
        sft_epochs=3,
        sft_min_reward=-0.5,
        optimizer=OptimizerConfig(learning_rate=1e30),
    )
    with pytest.raises(FloatingPointError, match="finite"):
        train_ppo(config)
    assert not (config.run_dir / "published").exists()
