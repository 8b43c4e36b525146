"""Whole training runs: what they leave, how they go on, and what they refuse."""

import csv
import logging
import os
import pathlib
import signal

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from agedi.checkpoint import load_diffusion
from agedi.config import ConditionConfig, DiffusionConfig, ModelConfig
from agedi.data.dataset import create_dataset, padded_lengths
from agedi.diffusion import Diffusion, complete_config, network
from agedi.training.config import DataConfig, FitConfig, fit_config
from agedi.training.from_settings import train_from_atoms, train_from_config
from agedi.training.run import load_run
from agedi.training.train import (
    first_params,
    resume,
    split_rows,
    train,
    training_plan,
)
from matterform.io.formats import write_structures
from matterform.training.checkpoint import Checkpoints
from matterform.training.config import OptimizerConfig
from matterform.training.mesh import make_mesh
from matterform.training.optimizers import make_optimizer
from matterform.training.state import init_state

pytestmark = pytest.mark.usefixtures("quick")

SMALL = {"feature_size": 8, "n_blocks": 1, "n_rbf": 6, "cutoff": 3.0}
MOLECULES = {
    **SMALL,
    "noisers": "Positions",
    "epochs": 6,
    "batch_size": 8,
    "lr": 3e-3,
    "val_split": 0.2,
    "ema_decay": 0.5,
    "lr_patience": 2,
    "log_interval": 2,
}
CRYSTALS = {
    **SMALL,
    "noisers": "CellPositions,Types",
    "conditioning": "gap",
    "force_field": True,
    "loss_balance": "80:20",
    "epochs": 3,
    "batch_size": 2,
    "val_split": 0.25,
    "lr": 1e-3,
}


@pytest.fixture(scope="module")
def molecules() -> list[ase.Atoms]:
    """Twenty bent molecules that breathe."""
    rng = np.random.default_rng(0)
    shape = np.array([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]])
    return [ase.Atoms("OH2", shape + rng.normal(0, 0.03, shape.shape)) for _ in range(20)]


@pytest.fixture(scope="module")
def crystals() -> list[ase.Atoms]:
    """Eight crystals of two species with Lennard-Jones energies and forces, and a property."""
    rng, structures = np.random.default_rng(1), []
    for i in range(8):
        atoms = bulk("CuAu" if i % 2 else "AgAu", "zincblende", a=4.4 + 0.05 * i)
        atoms.positions += rng.normal(0, 0.1, (2, 3))
        atoms.calc = LennardJones(sigma=1.8, epsilon=0.3, rc=4.0)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        atoms.info["gap"] = float(i)
        structures.append(atoms)
    return structures


@pytest.fixture(scope="module")
def molecular_run(molecules, quick, tmp_path_factory):
    """The result of training on molecules."""
    return train_from_atoms(molecules, **MOLECULES, log_dir=tmp_path_factory.mktemp("molecules"))


@pytest.fixture(scope="module")
def crystal_run(crystals, quick, tmp_path_factory):
    """The result of training on crystals, with everything that can be learned of them."""
    return train_from_atoms(crystals, **CRYSTALS, log_dir=tmp_path_factory.mktemp("crystals"))


def table(run_dir: pathlib.Path) -> list[dict[str, float]]:
    """The rows of metrics.csv without their empty cells."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_same_run(found, expected):
    assert_equal(found.fit.state, expected.fit.state)
    assert found.fit[1:] == expected.fit[1:]
    assert_equal(found.diffusion.params, expected.diffusion.params)
    assert found.diffusion.config == expected.diffusion.config
    assert (found.run_dir / "metrics.csv").read_text() == (expected.run_dir / "metrics.csv").read_text()


def test_the_loss_falls_and_everything_is_written(molecular_run):
    run_dir = molecular_run.run_dir
    assert run_dir.name == "version_0"
    assert molecular_run.fit.outcome == "finished"
    rows = table(run_dir)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]  # 16 molecules are two batches
    assert rows[-1]["validation_loss"] < 0.8 * rows[0]["validation_loss"]
    assert all(row["learning_rate"] > 0 for row in rows)
    assert list(run_dir.glob("events.out.tfevents*"))
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"best_model", "last_model"}


def test_a_run_describes_itself(molecular_run):
    run = load_run(molecular_run.run_dir)
    assert run.diffusion == molecular_run.diffusion.config
    assert (run.diffusion.noisers, run.diffusion.species) == (("Positions",), (1, 8))
    assert (run.n_training_data, run.n_validation_data) == (16, 4)
    assert run.n_parameters == sum(leaf.size for leaf in jax.tree.leaves(molecular_run.diffusion.params))
    given = {name: MOLECULES[name] for name in MOLECULES if name not in (*SMALL, "noisers")}
    assert run.training == fit_config({**given, "log_dir": molecular_run.run_dir.parent})


def test_the_best_and_the_last_model_are_what_they_are_called(molecular_run):
    run_dir, best_step = molecular_run.run_dir, molecular_run.fit.best_step
    rows = {row["step"]: row["validation_loss"] for row in table(run_dir)}
    assert best_step == min(rows, key=rows.__getitem__)
    config = load_run(run_dir).diffusion
    optimizer = make_optimizer(OptimizerConfig(optimizer="adamw", clip_norm=1.0, schedule="plateau"))
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network(config).params)
    template = init_state(fresh, optimizer, make_mesh(), ema=True)
    for name, step in (("best_model", best_step), ("last_model", 12)):
        checkpoints = Checkpoints(run_dir / "checkpoints" / name)
        state, _ = checkpoints.restore(template)
        checkpoints.close()
        assert int(state.step) == step
        for loaded in (load_diffusion(run_dir / "checkpoints" / name), load_diffusion(run_dir, name)):
            assert loaded.config == config
            assert_equal(loaded.params, state.ema)
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state.ema, state.params)), strict=True))
    assert_equal(load_diffusion(run_dir).params, load_diffusion(run_dir, "best").params)
    assert_equal(molecular_run.diffusion.params, load_diffusion(run_dir).params)


def test_crystals_learn_positions_species_property_energies_and_forces(crystal_run):
    rows = table(crystal_run.run_dir)
    names = {"diffusion", "cellpositions", "types", "regressor", "energy", "forces", "overflow"}
    assert {*names, "loss", "grad_norm", "learning_rate", "epoch", "step"} <= set(rows[0])
    assert all(row["overflow"] == 0 for row in rows)
    assert [(row["step"], row["epoch"]) for row in rows] == [(3, 1), (6, 2), (9, 3)]
    config = crystal_run.diffusion.config
    assert config.species == (29, 47, 79)
    assert {number for number, _ in config.force_field.reference_energies} == {29, 47, 79}
    # Balanced parts are near 1 each, so the total is near 1 as well, whatever their units.
    assert 0.3 < rows[-1]["loss"] < 2
    assert rows[-1]["loss"] != pytest.approx(rows[-1]["diffusion"] + rows[-1]["regressor"], rel=0.05)


def test_a_stopped_run_goes_on_to_the_same_bits(molecules, molecular_run, tmp_path):
    first = train_from_atoms(molecules, **{**MOLECULES, "epochs": 3}, log_dir=tmp_path)
    assert int(first.fit.state.step) == 6
    second = train_from_atoms(molecules, checkpoint=first.run_dir, epochs=6)
    assert second.run_dir == first.run_dir
    assert_same_run(second, molecular_run)


class Terminator(logging.Handler):
    """Sends the process SIGTERM when step 3 has been logged."""

    def emit(self, record):
        if record.getMessage().startswith("step 3:"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_run_remembers_the_balance_of_losses_and_the_epoch(crystals, crystal_run, tmp_path):
    logger, handler = logging.getLogger("matterform.training.loop"), Terminator()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        stopped = train_from_atoms(crystals, **CRYSTALS, log_dir=tmp_path)
    finally:
        logger.removeHandler(handler)
    assert (stopped.fit.outcome, int(stopped.fit.state.step)) == ("interrupted", 3)
    assert stopped.fit.state.memory.diffusion > 0
    assert_same_run(resume(stopped.run_dir, dataset_of(crystals)), crystal_run)


def dataset_of(crystals):
    """The data set of the crystal run."""
    return create_dataset(crystals, cutoff=3.0, conditioning="gap", force_field=True)


def test_a_run_can_go_back_to_its_best_model(molecules, tmp_path):
    first = train_from_atoms(molecules, **{**MOLECULES, "epochs": 2}, log_dir=tmp_path)
    best = Checkpoints(first.run_dir / "checkpoints" / "best_model")
    step = best.latest_step()
    best.close()
    second = train_from_atoms(molecules, checkpoint=first.run_dir / "checkpoints" / "best_model", epochs=3)
    assert int(second.fit.state.step) == 6
    assert step <= 4
    assert [row["step"] for row in table(first.run_dir)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lr": 1e-4},
            r"cannot resume with another training\.optimizer\.learning_rate: the run has 0\.003, given 0\.0001",
        ),
        ({"batch_size": 4}, r"cannot resume with another training\.batch_size"),
        ({"seed": 1}, r"cannot resume with another training\.seed"),
    ],
)
def test_a_run_does_not_go_on_otherwise(molecules, molecular_run, changes, message):
    with pytest.raises(ValueError, match=message):
        train_from_atoms(molecules, checkpoint=molecular_run.run_dir, **changes)


def test_a_run_does_not_go_on_with_other_data(molecules, molecular_run):
    with pytest.raises(ValueError, match="cannot resume with other data: the run has"):
        train_from_atoms(molecules[1:], checkpoint=molecular_run.run_dir)
    with pytest.raises(ValueError, match=r"data_path\) must name a file of structures"):
        train_from_config({"checkpoint": str(molecular_run.run_dir)})


def test_options_of_the_model_do_not_change_a_run(molecules, molecular_run, caplog):
    again = train_from_atoms(molecules, checkpoint=molecular_run.run_dir, feature_size=64, mask="MaskFixed")
    assert "is continued with its own feature_size, mask" in caplog.text
    assert again.diffusion.config == molecular_run.diffusion.config


def test_a_loaded_model_learns_on_in_a_run_of_its_own(molecules, molecular_run, tmp_path):
    options = {name: value for name, value in MOLECULES.items() if name not in (*SMALL, "noisers")}
    dataset = create_dataset(molecules, cutoff=3.0)
    result = train(load_diffusion(molecular_run.run_dir), dataset, **{**options, "epochs": 1}, log_dir=tmp_path)
    assert result.run_dir == tmp_path / "version_0"
    assert load_run(result.run_dir).data == DataConfig()
    first, [row] = table(molecular_run.run_dir)[0], table(result.run_dir)
    assert row["step"] == 2
    assert row["validation_loss"] < 0.9 * first["validation_loss"]


def test_a_file_or_a_config_is_trained_on_as_the_structures_themselves(molecules, molecular_run, tmp_path):
    write_structures(tmp_path / "molecules.traj", molecules)
    lines = [f"{name}: {value}" for name, value in MOLECULES.items()]
    (tmp_path / "config.yaml").write_text("\n".join([*lines, f"data_path: {tmp_path / 'molecules.traj'}"]))
    result = train_from_config(tmp_path / "config.yaml", log_dir=tmp_path, logger="csv")
    assert_same_run(result, molecular_run)
    assert not list(result.run_dir.glob("events*"))
    before = (result.run_dir / "metrics.csv").read_text()
    assert_same_run(resume(result.run_dir), result)  # reads the file again, and finds nothing to do
    assert (result.run_dir / "metrics.csv").read_text() == before


def test_too_many_species_are_refused(crystals, tmp_path):
    with pytest.raises(ValueError, match="n_classes is 2, but the data hold 3 species"):
        train_from_atoms(crystals, **{**CRYSTALS, "n_classes": 2}, log_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_when_the_data_are_refused(molecules, tmp_path):
    broken = [*molecules, ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.1]])]
    with pytest.raises(ValueError, match=r"structure 20 has atoms 0 and 1 only 0\.100 angstrom"):
        train_from_atoms(broken, **MOLECULES, log_dir=tmp_path)
    with pytest.raises(ValueError, match="structure 0 has no property 'gap'"):
        train_from_atoms(molecules, **MOLECULES, conditioning="gap", log_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_split_follows_the_seed_and_leaves_the_force_fields_own(crystals):
    dataset = create_dataset(crystals, force_field=True, regressor_data=crystals[:3])
    split = split_rows(dataset, FitConfig(validation_fraction=0.25))
    assert (len(split.train), len(split.validation)) == (6 + 3, 2)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(11))
    assert set(split.validation.tolist()) < set(range(8))
    for rows, same in zip(split, split_rows(dataset, FitConfig(validation_fraction=0.25)), strict=True):
        np.testing.assert_array_equal(rows, same)
    seeds = [tuple(split_rows(dataset, FitConfig(validation_fraction=0.25, seed=seed)).validation) for seed in range(8)]
    assert len(set(seeds)) > 3
    assert len(split_rows(dataset, FitConfig(validation_fraction=0.25, train_fraction=0.5)).train) == 4 + 3
    with pytest.raises(ValueError, match=r"validation_fraction 0\.99 leaves none of 8 structures"):
        split_rows(dataset, FitConfig(validation_fraction=0.99))


def test_the_force_fields_own_structures_are_noised_between_the_same_walls(crystals):
    # Their noise does not count, but between infinite walls it would not be finite, and then no gradient is.
    for atoms in crystals:
        assert atoms.positions[:, 2].min() > -2
        assert atoms.positions[:, 2].max() < 4
    dataset = create_dataset(crystals, confinement=(-2.0, 4.0), force_field=True, regressor_data=crystals[:2])
    assert [graph.confinement.tolist() for graph in dataset.graphs] == [[-2.0, 4.0]] * 10


def test_copies_join_on_their_epochs_and_only_of_what_is_trained_on(crystals):
    dataset = create_dataset(crystals, repeat=3, repeat_epoch=2)
    training = FitConfig(validation_fraction=0.25, batch_size=4)
    split = split_rows(dataset, training)
    plan = training_plan(dataset, split.train, training)
    for epoch, copies in enumerate((1, 1, 2, 2, 3, 3, 3)):
        batches = plan.epoch(epoch)
        rows = np.concatenate([batch.indices[batch.weight > 0] for batch in batches])
        expected = np.concatenate([split.train + 8 * k for k in range(copies)])
        np.testing.assert_array_equal(np.sort(rows), np.sort(expected))
        assert all((padded_lengths(dataset)[batch.indices] <= batch.length).all() for batch in batches)


def test_parameters_that_no_longer_fit_are_drawn_anew(crystals):
    dataset = create_dataset(crystals)
    config = DiffusionConfig(noisers=("CellPositions", "Types"), model=ModelConfig(feature_size=4, n_blocks=1, n_rbf=3))
    model = network(config)
    old = Diffusion(config, model._replace(params=jax.tree.map(lambda leaf: np.full(leaf.shape, 7.0), model.params)))
    resolved = complete_config(config, dataset)
    params = first_params(old, resolved, 0)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, network(resolved).params)
    fresh = [leaf for leaf in jax.tree.leaves(params) if not np.all(leaf == 7.0)]
    assert {np.shape(leaf) for leaf in fresh} == {(4, 3), (3,)}  # the head that draws one of three species
    assert first_params(old, config, 0) is old.params


def test_conditions_of_a_model_are_those_of_its_data(crystal_run):
    [gap] = crystal_run.diffusion.config.conditions
    assert gap == ConditionConfig(name="gap", mean=3.5, std=float(np.std(np.arange(8, dtype=np.float32))))
