"""The published recipe towards stable crystals: PPO with minus the energy above the hull as reward.

    python experiments/rl/ehull.py --model epoch_005500.pkl --mlff-model orb --mlff-path orb-v2-20241011.ckpt \
        --convex-path convex_hull_pbe_2023.12.29.json.bz2 --run-dir runs/rl_ehull

Batches of 1000 crystals, five steps of Adam at 1e-5 on each, clip range 0.2, beta 0.1, 200 epochs (CrystalFormer-RL,
arXiv 2504.02367). `matterform hull` converts the file of the hull to a folder that opens instantly. Other force fields:
--mlff-model mace, matgl, or chgnet, which needs no file. Space groups: --spacegroup 225 62 or --spacegroups-from data.
Every flag of `crystalformer ppo` overrides the recipe; `--resume` continues an interrupted run.
"""

import pathlib

from crystalformer.rl import ObjectiveConfig, PpoConfig, RewardConfig
from experiments import common
from matterform import OptimizerConfig, PotentialConfig

RECIPE = PpoConfig(
    run_dir=pathlib.Path("runs/rl_ehull"),
    reward=RewardConfig(reward=("ehull",), potential=PotentialConfig(mlff_model="orb")),
    batch_size=1000,
    epochs=200,
    ppo_epochs=5,
    objective=ObjectiveConfig(clip_ratio=0.2, beta=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-5),
)

if __name__ == "__main__":
    common.command("crystalformer", "ppo", RECIPE)
