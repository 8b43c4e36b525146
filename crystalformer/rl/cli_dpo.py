"""The command `crystalformer dpo`."""

from collections.abc import Sequence
from typing import Any

from matterform.commandline_old import parse_run, report_run

DPO = """Fine-tunes weights on preferences: towards the chosen crystal of each pair, away from the rejected one.

Pairs are two files, row by row (a table of `crystalformer sample` or `score` by its index), or one scored table, of
which the best crystals are paired with the worst of the same formula or space group. The run folder holds config.yaml,
pairs.csv, refused.csv, metrics.csv, checkpoints/ to resume and published/ to use.

crystalformer dpo --chosen stable.csv --rejected unstable.csv --run-dir runs/dpo

matterform above-hull samples/samples.csv --hull hulls/mp --out scored.csv  (samples of `crystalformer sample`)

crystalformer dpo --scored scored.csv --score e_above_hull --lower-is-better --group-by spacegroup --run-dir runs/dpo

crystalformer dpo --run-dir runs/dpo --resume --epochs 20

Metrics, of the training pairs and (validation_...) of held-out ones: accuracy, the share of pairs whose chosen crystal
gained more log-probability than the rejected one since the start; margin, by how much; ranked, the share of pairs whose
chosen crystal is the likelier one; reward_..., beta times each one's gain.
"""


def run_dpo(argv: Sequence[str], recipe: Any = None) -> int:
    """Trains on pairs from flags, on top of a saved config or of a `recipe`; or goes on with an interrupted run."""
    from crystalformer.rl.config import DpoConfig
    from crystalformer.rl.dpo.train import train_dpo
    from matterform.training.mesh import initialize_distributed

    run, resume, processes = parse_run(DpoConfig, "crystalformer dpo", DPO, argv, recipe)
    if processes is not None:
        initialize_distributed(*processes)
    return report_run("crystalformer", "dpo", run.run_dir, train_dpo(run, resume=resume), "published")
