"""The command `crystalformer ppo`."""

from collections.abc import Sequence
from typing import Any

from matterform.commandline_old import parse_run, say

PPO = """Fine-tunes weights towards a reward: samples crystals, scores them, follows the gradient; again and again.

Before the first epoch files are checked, and a few samples go through the reward. Energies are in eV. The run folder
holds config.yaml, metrics.csv, epochs.jsonl, curves.png, samples/, checkpoints/ to resume and published/ to use.

Towards stable crystals, with CHGNet's energies and the hull of Alexandria:

crystalformer ppo --model epoch_005500.pkl --reward ehull --mlff-model chgnet --convex-path convex_hull.json.bz2
--run-dir runs/stable

Towards a band gap of 3 eV, in two space groups, with a model of matgl:

crystalformer ppo --reward property --property-path gap_model --target 3 --spacegroup 225 62 --run-dir runs/gap

With a function of your own, list of pymatgen structures -> one number each, larger is better:

crystalformer ppo --reward my_rewards:hardness --run-dir runs/hard

crystalformer ppo --run-dir runs/hard --resume --epochs 200
"""


def run_ppo(argv: Sequence[str], recipe: Any = None) -> int:
    """Fine-tunes from flags, on top of a saved config or of a `recipe`; or goes on with an interrupted run."""
    from crystalformer.rl.config import PpoConfig
    from crystalformer.rl.ppo.train import train_ppo
    from matterform.training.mesh import initialize_distributed

    run, resume, processes = parse_run(PpoConfig, "crystalformer ppo", PPO, argv, recipe)
    if processes is not None:
        initialize_distributed(*processes)
    result = train_ppo(run, resume=resume)
    if result.outcome == "interrupted":
        say(f"stopped after epoch {result.epoch}; go on with: crystalformer ppo --run-dir {run.run_dir} --resume")
        return 130
    say(f"{result.outcome} after epoch {result.epoch}; weights in {run.run_dir / 'published'}")
    return 0
