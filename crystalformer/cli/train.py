"""The training commands: `crystalformer train`, `ppo` and `dpo`."""

from crystalformer.config import TrainConfig
from crystalformer.rl.config import DpoConfig, PpoConfig
from matterform.arguments import Command, TrainingRun
from matterform.commandline import Interrupted, report_run, say

TRAIN = """Trains a model; the run folder holds config.yaml, metrics.csv, checkpoints/ to resume and published/ to use.

crystalformer train --train mp_20.csv --run-dir runs/mp20 --epochs 500 --learning-rate 1e-3

crystalformer train --run-dir runs/mp20 --resume
"""

PPO = """Fine-tunes weights towards a reward: samples crystals, scores them, and takes gradient steps, for many epochs.

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


def run_train(run: TrainingRun) -> int:
    """Trains, or resumes an interrupted run.

    Raises:
        Interrupted: the run was interrupted; the message gives the command that resumes it.
    """
    from crystalformer.training import train
    from matterform.training.mesh import connect

    connect(run.processes)
    return report_run("crystalformer", "train", run.config.run_dir, train(run.config, resume=run.resume), "published")


def run_ppo(run: TrainingRun) -> int:
    """Fine-tunes towards a reward, or resumes an interrupted run.

    Raises:
        Interrupted: the run was interrupted; the message gives the command that resumes it.
    """
    from crystalformer.rl import train_ppo
    from matterform.training.mesh import connect

    connect(run.processes)
    run_dir, result = run.config.run_dir, train_ppo(run.config, resume=run.resume)
    if result.outcome == "interrupted":
        go_on = f"go on with: crystalformer ppo --run-dir {run_dir} --resume"
        raise Interrupted(f"epoch {result.epoch} is saved in {run_dir}; {go_on}")
    say(f"{result.outcome} after epoch {result.epoch}; weights in {run_dir / 'published'}")
    return 0


def run_dpo(run: TrainingRun) -> int:
    """Trains on preference pairs, or resumes an interrupted run.

    Raises:
        Interrupted: the run was interrupted; the message gives the command that resumes it.
    """
    from crystalformer.rl import train_dpo
    from matterform.training.mesh import connect

    connect(run.processes)
    return report_run("crystalformer", "dpo", run.config.run_dir, train_dpo(run.config, resume=run.resume), "published")


# Flags of the published scripts that have a counterpart under another name but are not aliases of a setting.
PUBLISHED = {"--lr_decay": "--decay", "--num_io_process": "--workers"}
FINE_TUNING = PUBLISHED | {"--eps_clip": "--clip-ratio"}
ANSWERS = {
    "--test_path": "log-probabilities of given crystals are a command: `crystalformer score FILE --model WEIGHTS`",
    "--num_samples": "sampling is a command of its own: `crystalformer sample --num-samples N --model WEIGHTS`",
    "--use_foriloop": "not needed: layers are always scanned; leave it out",
    "--num_devices": "not needed: all devices of the machine are used; leave it out",
}
FROM_WEIGHTS = {
    name: "sizes are read from the weights that --model names; leave it out"
    for name in ("--Nf", "--Kl", "--h0_size", "--transformer_layers", "--model_size", "--embed_size")
} | {
    name: "the weights that --model names say it; leave it out"
    for name in ("--atom_types", "--wyck_types", "--dropout_rate", "--attn_dropout")
}

COMMANDS = (
    Command("train", TrainConfig, run_train, PUBLISHED, ANSWERS, training=True, help=TRAIN),
    Command("ppo", PpoConfig, run_ppo, FINE_TUNING, ANSWERS | FROM_WEIGHTS, training=True, help=PPO),
    Command("dpo", DpoConfig, run_dpo, PUBLISHED, ANSWERS | FROM_WEIGHTS, training=True, help=DPO),
)
