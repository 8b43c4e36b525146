"""The flags of the published scripts are understood, or answered by one line that names ours."""

import pathlib
import shlex

import pytest

from crystalformer.cli import COMMANDS
from crystalformer.cli.sample import Sample
from crystalformer.config import TrainConfig
from crystalformer.rl.config import PpoConfig
from matterform.arguments import UsageError, parse

BY_NAME = {command.name: command for command in COMMANDS}


def parsed(name: str, flags: str):
    return parse(BY_NAME[name], "crystalformer", shlex.split(flags))


def test_training_takes_the_published_flags():
    sizes = "--Nf 6 --Kx 15 --Kl 5 --h0_size 128 --transformer_layers 4 --num_heads 8 --key_size 32 --model_size 48"
    sizes += " --embed_size 24 --n_max 22 --atom_types 118 --wyck_types 27 --dropout_rate 0.2 --attn_dropout 0.3"
    flags = f"--folder runs/a --train_path mp/train.csv --valid_path mp/val.csv --batchsize 64 --epochs 9 {sizes}"
    flags += " --optimizer adamw --lr 2e-4 --lr_decay 0.1 --weight_decay 0.01 --clip_grad 1.5 --lamb_a 2 --lamb_w 3"
    config = parsed("train", f"{flags} --lamb_l 4 --num_io_process 3 --restore_path a.pkl --seed 7").config
    assert isinstance(config, TrainConfig)
    assert (config.run_dir, config.train) == (pathlib.Path("runs/a"), pathlib.Path("mp/train.csv"))
    assert (config.validation, config.model) == (pathlib.Path("mp/val.csv"), pathlib.Path("a.pkl"))
    assert (config.batch_size, config.loop.epochs, config.workers, config.seed) == (64, 9, 3, 7)
    network = config.transformer
    assert (network.Nf, network.Kx, network.Kl, network.h0_size, network.num_layers) == (6, 15, 5, 128, 4)
    assert (network.num_heads, network.key_size, network.model_size, network.embed_size) == (8, 32, 48, 24)
    assert (network.n_max, network.atom_types, network.wyck_types) == (22, 118, 27)
    assert (network.dropout_rate, network.attn_rate) == (0.2, 0.3)
    optimizer = config.optimizer
    assert (optimizer.optimizer, optimizer.learning_rate, optimizer.decay) == ("adamw", 2e-4, 0.1)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.01, 1.5)
    assert (config.loss.lamb_a, config.loss.lamb_w, config.loss.lamb_l) == (2, 3, 4)


def test_sampling_takes_the_published_flags():
    flags = "--restore_path a.pkl --spacegroup 225 --elements Na Cl --wyckoff a b --temperature 0.9 --top_p 0.8"
    flags += " --T1 1.1 --num_samples 12 --batchsize 5 --save_path out --remove_radioactive --nsweeps 3 --mc_width 0.2"
    config = parsed("sample", f"{flags} --n_max 24 --seed 3 --constraints c.json")
    assert isinstance(config, Sample)
    assert (config.weights.model, config.out) == (pathlib.Path("a.pkl"), pathlib.Path("out"))
    assert (config.spacegroup, config.elements, config.letters) == ((225,), ("Na", "Cl"), ("a", "b"))
    assert (config.sampling.temperature, config.sampling.top_p, config.sampling.T1) == (0.9, 0.8, 1.1)
    assert (config.num_samples, config.sampling.batch_size, config.radioactive) == (12, 5, False)
    assert (config.mcmc.mcmc_sweeps, config.mcmc.mcmc_width) == (3, 0.2)
    assert (config.weights.n_max, config.seed, config.constraints) == (24, 3, pathlib.Path("c.json"))
    assert parsed("sample", "a.pkl").weights == parsed("sample", "--checkpoint a.pkl").weights


def test_fine_tuning_takes_the_published_flags():
    flags = "--folder runs/a --restore_path a.pkl --reward ehull --convex_path hull.json.bz2 --mlff_model orb"
    flags += " --mlff_path orb.ckpt --epochs 20 --batchsize 500 --lr 1e-5 --beta 0.2 --eps_clip 0.3 --ppo_epochs 4"
    config = parsed("ppo", f"{flags} --clip_grad 1 --valid_path val.csv").config
    assert isinstance(config, PpoConfig)
    assert (config.run_dir, config.weights.model) == (pathlib.Path("runs/a"), pathlib.Path("a.pkl"))
    assert (config.reward.reward, config.reward.convex_path) == (("ehull",), pathlib.Path("hull.json.bz2"))
    potential = config.reward.potential
    assert (potential.mlff_model, potential.mlff_path) == ("orb", pathlib.Path("orb.ckpt"))
    assert (config.epochs, config.batch_size, config.ppo_epochs) == (20, 500, 4)
    assert (config.objective.beta, config.objective.clip_ratio) == (0.2, 0.3)
    assert (config.optimizer.learning_rate, config.optimizer.clip_norm) == (1e-5, 1)
    assert config.validation == pathlib.Path("val.csv")


@pytest.mark.parametrize(
    ("command", "flags", "ours"),
    [
        ("train", "--test_path t.csv", "crystalformer score"),
        ("train", "--num_samples 10", "crystalformer sample --num-samples"),
        ("train", "--use_foriloop", "leave it out"),
        ("train", "--train a.csv --run-dir b --optimizer none", "one of adam, adamw"),
        ("sample", "--optimizer none", "leave it out"),
        ("sample", "--folder x", "--out"),
        ("sample", "--test_path t.csv", "crystalformer score"),
        ("sample", "--model_size 64", "--model"),
        ("sample", "--dropout_rate=0.1", "--model"),
        ("ppo", "--transformer_layers 16", "--model"),
        ("dpo", "--Nf 5", "--model"),
    ],
)
def test_what_has_no_counterpart_is_answered_in_one_line(command, flags, ours):
    with pytest.raises(UsageError) as caught:
        parsed(command, flags)
    assert ours in str(caught.value)
    assert "\n" not in str(caught.value)
