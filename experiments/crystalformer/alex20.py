"""The published Alex-20 recipe (arXiv 2504.02367): rotary positions, batches of 8000 over 8 devices, Adam at 1e-4.

    crystalformer prepare alex_20/train.csv alex_20/train --workers 32
    crystalformer prepare alex_20/val.csv alex_20/val --workers 32
    python experiments/crystalformer/alex20.py --run-dir runs/alex20

Every flag of `crystalformer train` overrides the recipe; `--resume` continues an interrupted run. All devices of
the machine share a batch; with fewer or smaller ones, `--accumulate 8` gives the same results with an eighth of the
memory. On several hosts start the same command on each, with `--distributed`.
"""

import pathlib

from crystalformer import TrainConfig
from experiments import common
from matterform import LoopConfig, OptimizerConfig

RECIPE = TrainConfig(
    train=pathlib.Path("alex_20/train"),
    validation=pathlib.Path("alex_20/val"),
    run_dir=pathlib.Path("runs/alex20"),
    optimizer=OptimizerConfig(learning_rate=1e-4, clip_norm=1.0),
    loop=LoopConfig(epochs=5500),
    batch_size=8000,
    publish_every=100,
)

if __name__ == "__main__":
    common.command("crystalformer", "train", RECIPE)
