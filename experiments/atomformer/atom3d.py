"""Fine-tunes AtomFormer on a task of ATOM3D (Townshend et al. 2021) and evaluates it with the task's metrics.

    python experiments/atomformer/atom3d.py LBA --data atom3d-lba --model atomformer-base --run-dir runs/lba

`--data` is a folder of Hugging Face's `datasets` or of parquet files with the splits train, validation (or val) and
test and the column `labels`. Tasks: SMP, PSR, LBA, RSR (regressions), RES (20 classes), MSP, LEP, PPI (binary). All
other options are passed to `atomformer finetune`.
"""

import argparse
import sys

from atomformer import ATOM3D
from atomformer.cli import main


def run(argv: list[str]) -> int:
    """Trains, then evaluates; returns the exit status of the first step that fails, or else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=ATOM3D, help="ATOM3D task")
    parser.add_argument("--data", required=True, help="folder with the splits")
    parser.add_argument("--model", required=True, help="folder or hub id of a pre-trained model")
    parser.add_argument("--run-dir", required=True, help="folder of the run")
    parser.add_argument("--validation-split", default="val", help="name of the validation split (default: %(default)s)")
    arguments, rest = parser.parse_known_args(argv)
    problem, classes = ATOM3D[arguments.task].problem, ATOM3D[arguments.task].num_labels
    print(f"{arguments.task}: {ATOM3D[arguments.task].title}, {problem} with {classes} outputs")
    status = main(
        [
            "finetune",
            *("--train", arguments.data, "--split", "train", "--validation-split", arguments.validation_split),
            *("--task", arguments.task, "--model", arguments.model, "--run-dir", arguments.run_dir),
            *rest,
        ]
    )
    if status:
        return status
    evaluation = ["--out", f"{arguments.run_dir}/evaluation", "--task", arguments.task, "--split", "test"]
    return main(["evaluate", arguments.data, "--model", f"{arguments.run_dir}/model", *evaluation])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
