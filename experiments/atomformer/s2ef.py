"""AtomFormer's published pre-training: formation energies and forces of OC20, OC22, ODAC23, MPtrj and SPICE.

    atomformer prepare s2ef-15m runs/s2ef-15m --split train        # once: the published parquet, or any --kind
    python experiments/atomformer/s2ef.py --train runs/s2ef-15m --run-dir runs/atomformer_base

AdamW at 3e-4 with a cosine schedule and 0.001 of the run as warm-up, weight decay 0.01, gradient norm 5, 128 structures
per step over all devices, 10 epochs, gradient checkpointing, batches of equal length. Every flag of `atomformer
pretrain` works, including --distributed for several hosts. Settings that the paper does not give, such as the held-out
share, are our choice.
"""

import pathlib

from atomformer import PretrainConfig
from experiments import common
from matterform import LoopConfig

RECIPE = PretrainConfig(
    train=pathlib.Path("s2ef-15m"),
    run_dir=pathlib.Path("runs/atomformer_base"),
    size="base",
    validation_fraction=0.001,
    loop=LoopConfig(epochs=10, log_every=100, validate_every=10_000, checkpoint_every=5_000),
    batch_size=128,
)

if __name__ == "__main__":
    common.command("atomformer", "pretrain", RECIPE)
