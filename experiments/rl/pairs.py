"""The published settings of preference optimisation: beta 0.1, Adam at 1e-5, no smoothing, for any published weights.

    python experiments/rl/pairs.py --model epoch_005500.pkl --chosen stable.csv --rejected unstable.csv
    python experiments/rl/pairs.py --scored scored.csv --score e_above_hull --lower-is-better --group-by spacegroup

Every flag of `crystalformer dpo` overrides the recipe; `--resume` continues an interrupted run. For a trial with
the small model that ships, leave out --model. A scored table is made of samples, whose energies above a hull (a
folder of `matterform hull`) are those of a potential, CHGNet unless --mlff-model names another:

    crystalformer sample --num-samples 4000 --out samples
    matterform above-hull samples/samples.csv --hull hulls/mp --out scored.csv

Crystals without an energy give no pair; they are counted, and listed in the run's refused.csv.
"""

import pathlib

from crystalformer.rl import DpoConfig, PreferenceConfig
from experiments import common
from matterform import LoopConfig, OptimizerConfig

RECIPE = DpoConfig(
    run_dir=pathlib.Path("runs/dpo"),
    preference=PreferenceConfig(loss="dpo", beta=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-5),
    loop=LoopConfig(epochs=100),
    batch_size=100,
)

if __name__ == "__main__":
    common.command("crystalformer", "dpo", RECIPE)
