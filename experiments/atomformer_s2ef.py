"""AtomFormer's published pre-training: formation energies and forces of OC20, OC22, ODAC23, MPtrj and SPICE.

    atomformer prepare s2ef-15m runs/s2ef-15m --split train        # once: the published parquet, or any --kind
    python experiments/atomformer_s2ef.py --train runs/s2ef-15m --run-dir runs/atomformer_base

AdamW 3e-4 with a cosine, weight decay 0.01, gradient norm 5, 128 structures a step over all devices, 10 epochs,
gradient checkpointing, batches of equal length. Every flag of `atomformer pretrain` works, several hosts
(--distributed) included. What the recipe does not print, such as the shape of a held-out set, is the code's default.
"""

import dataclasses
import pathlib
import sys

from atomformer.cli import main
from atomformer.train import PretrainConfig
from matterform.training.loop import LoopConfig

RECIPE = PretrainConfig(
    train=pathlib.Path("s2ef-15m"),
    run_dir=pathlib.Path("runs/atomformer_base"),
    size="base",
    validation_fraction=0.001,
    loop=LoopConfig(epochs=10, log_every=100, validate_every=10_000, checkpoint_every=5_000),
    batch_size=128,
)

if __name__ == "__main__":
    # The warm-up is 0.001 of the run: 10 epochs of 15 million structures at 128 a step.
    warmup = round(0.001 * 10 * 15_000_000 / RECIPE.batch_size)
    optimizer = dataclasses.replace(RECIPE.optimizer, warmup_steps=warmup)
    sys.exit(main(["pretrain", *sys.argv[1:]], recipe=dataclasses.replace(RECIPE, optimizer=optimizer)))
