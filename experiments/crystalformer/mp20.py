"""The published MP-20 recipe (arXiv:2403.15734): absolute positions, batches of 100, Adam at 1e-4, gradient norm 1.

    python experiments/crystalformer/mp20.py --train mp_20/train.csv --validation mp_20/val.csv --run-dir runs/mp20

Every flag of `crystalformer train` overrides the recipe; `--resume` continues an interrupted run. For a short trial:
`--epochs 50 --num-layers 4`.
"""

import pathlib

from crystalformer import TrainConfig, TransformerConfig
from experiments import common
from matterform import LoopConfig, OptimizerConfig

RECIPE = TrainConfig(
    train=pathlib.Path("mp_20/train.csv"),
    validation=pathlib.Path("mp_20/val.csv"),
    run_dir=pathlib.Path("runs/mp20"),
    transformer=TransformerConfig(generation="absolute"),
    optimizer=OptimizerConfig(learning_rate=1e-4, clip_norm=1.0),
    loop=LoopConfig(epochs=3800),
    batch_size=100,
)

if __name__ == "__main__":
    common.command("crystalformer", "train", RECIPE)
