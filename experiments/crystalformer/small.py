"""Trains the small model that ships with the package, and exports it with its card and learning curve.

    python experiments/crystalformer/small.py train --train mp20_biternary.csv.gz --run-dir runs/small
    python experiments/crystalformer/small.py export --run-dir runs/small
    python experiments/crystalformer/small.py evaluate --run-dir runs/small

Data: 7,140 binary and ternary crystals of MP-20's validation set, up to 20 atoms (Materials Project, CC BY 4.0), a
tenth of them held out. The shipped weights are those of epoch 47, where the held-out loss stopped falling: each
epoch took 40 to 60 s on two busy cores, and the schedule was set for 100 epochs.
"""

import pathlib
import sys

from crystalformer import TrainConfig, TransformerConfig
from experiments import common
from experiments.crystalformer import shipped
from matterform import LoopConfig, OptimizerConfig

EPOCHS, STEPS_PER_EPOCH = 100, 101

RECIPE = TrainConfig(
    train=pathlib.Path("mp20_biternary.csv.gz"),
    run_dir=pathlib.Path("runs/small"),
    transformer=TransformerConfig(num_layers=6, num_heads=8, key_size=32, model_size=128, h0_size=128),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        schedule="cosine",
        total_steps=EPOCHS * STEPS_PER_EPOCH,
        warmup_steps=200,
        clip_norm=1.0,
    ),
    loop=LoopConfig(epochs=EPOCHS, patience=2),
    batch_size=64,
    ema_decay=0.999,
    publish_every=20,
)


if __name__ == "__main__":
    if sys.argv[1:2] in (["export"], ["evaluate"]):
        sys.exit(shipped.run(sys.argv[1:]))
    common.command("crystalformer", "train", RECIPE, sys.argv[2:] if sys.argv[1:2] == ["train"] else sys.argv[1:])
