"""Fine-tunes the model that ships, on two processor cores in an hour or so: towards stability, or towards a band gap.

    python experiments/rl/small.py stable --convex-path mp20_biternary.csv.gz --run-dir runs/stable
    python experiments/rl/small.py known --convex-path mp20_biternary.csv.gz --novelty-reference mp20_biternary.csv.gz
    python experiments/rl/band_gap_model.py --table mp20_biternary.csv.gz --out runs/gap_model
    python experiments/rl/small.py gap --property-path runs/gap_model --run-dir runs/gap

`stable` takes CHGNet's energies of samples as they are, the hull of the table's own crystals, and the references that
hull_mp20.py fitted. That hull is a part of the real one, so lying below it earns no reward (--reward-high 0).
`known` also penalises systems for which the hull has no data: chemical systems without a compound cost 1 eV/atom.
The first crystal of each kind, and crystals that are not in the table, earn 0.25 each.
`gap` aims at 3 eV with a small MEGNet. rl/compare.py compares the results. Every flag of `crystalformer ppo` overrides
the recipe.
"""

import dataclasses
import pathlib
import sys

from crystalformer.rl import ObjectiveConfig, PpoConfig, RewardConfig
from experiments import common
from matterform import OptimizerConfig, PotentialConfig

REFERENCES = pathlib.Path(__file__).parent / "results" / "hull_mp20" / "references.json"

STABLE = PpoConfig(
    run_dir=pathlib.Path("runs/stable"),
    reward=RewardConfig(
        reward=("ehull",),
        references=REFERENCES,
        reward_high=0.0,
        potential=PotentialConfig(mlff_model="chgnet", threads=1),
    ),
    batch_size=200,
    epochs=200,
    ppo_epochs=5,
    objective=ObjectiveConfig(clip_ratio=0.2, beta=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    save_every=25,
    publish_every=25,
)
KNOWN = dataclasses.replace(
    STABLE,
    run_dir=pathlib.Path("runs/known"),
    reward=dataclasses.replace(STABLE.reward, unknown_penalty=1.0, uniqueness_bonus=0.25, novelty_bonus=0.25),
)
GAP = dataclasses.replace(
    STABLE,
    run_dir=pathlib.Path("runs/gap"),
    reward=RewardConfig(reward=("property",), target=3.0, potential=PotentialConfig(threads=1)),
    epochs=100,
)
RECIPES = {"stable": STABLE, "known": KNOWN, "gap": GAP}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in RECIPES:
        sys.exit(__doc__)
    common.command("crystalformer", "ppo", RECIPES[sys.argv[1]], sys.argv[2:])
