"""The published recipe towards dielectrics: PPO with dielectric constant times band gap as reward.

    python experiments/rl/dielectric.py --model epoch_005500.pkl --dielectric-path dielectric_model \
        --property-path MEGNet-MP-2019.4.1-BandGap-mfi --run-dir runs/rl_dielectric

Both paths are folders of matgl models: one of the dielectric tensor, and the multi-fidelity MEGNet of band gaps, here
at fidelity 0 (PBE). beta is 2, the rest as in ehull.py (CrystalFormer-RL, arXiv 2504.02367). Every flag of
`crystalformer ppo` overrides the recipe; `--resume` continues an interrupted run.
"""

import pathlib

from crystalformer.rl import ObjectiveConfig, PpoConfig, RewardConfig
from experiments import common
from matterform import OptimizerConfig

RECIPE = PpoConfig(
    run_dir=pathlib.Path("runs/rl_dielectric"),
    reward=RewardConfig(reward=("dielectric",), fidelity=0),
    batch_size=1000,
    epochs=200,
    ppo_epochs=5,
    objective=ObjectiveConfig(clip_ratio=0.2, beta=2.0),
    optimizer=OptimizerConfig(learning_rate=1e-5),
)

if __name__ == "__main__":
    common.command("crystalformer", "ppo", RECIPE)
