"""The published MP-20 recipe (arXiv 2403.15734): absolute positions, batches of 100, Adam at 1e-4, gradient norm 1.

    python experiments/crystalformer/mp20.py --train mp_20/train.csv --validation mp_20/val.csv --run-dir runs/mp20

Every flag of `crystalformer train` overrides the recipe; `--resume` goes on with an interrupted run. A first look:
`--epochs 50 --num-layers 4`.
"""

import pathlib
import sys

from crystalformer.cli import main
from crystalformer.config import TrainConfig, TransformerConfig
from matterform.training.config import LoopConfig, OptimizerConfig

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
    sys.exit(main(["train", *sys.argv[1:]], RECIPE))
