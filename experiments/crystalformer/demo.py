"""What `make demo` runs: crystals from the shipped weights, judged and drawn, in a few minutes on two cores.

    python experiments/crystalformer/demo.py --out demo

Writes CIFs with their symmetry, samples.csv (model's view), judged.csv (validity and more, a row a crystal),
summary.json (shares with their protocol) and crystals.png.
"""

import dataclasses
import json
import pathlib
import sys
import time
import warnings

import jax
import numpy as np
import pandas as pd
import tyro

from crystalformer.checkpoint.pretrained import held_out_statistics, load_pretrained, model_card, training_spacegroups
from crystalformer.cli import main as crystalformer
from crystalformer.data.crystals import Crystals, to_structures
from crystalformer.sampling.sample import sample
from crystalformer.table import read_crystal_table
from matterform.evaluation.summary import EvaluationConfig, describe, evaluate
from matterform.plots.gallery import write_picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Samples, judges and draws."""

    out: pathlib.Path = pathlib.Path("demo")  # folder; an earlier demo in it is refused, not overwritten
    num_samples: int = 300
    temperature: float = 1.0
    seed: int = 42


def steady_speed(num_samples: int) -> float:
    """Crystals a second of a second call, without compilation; groups as in the training set."""
    weights, counts = load_pretrained(), training_spacegroups()
    groups = np.random.default_rng(0).choice(np.arange(1, 231), num_samples, p=counts / counts.sum())
    seconds = []
    for seed in range(2):
        start = time.monotonic()
        sample(weights.params, weights.config, jax.random.key(seed), groups)
        seconds.append(time.monotonic() - start)
    return num_samples / seconds[-1]


def demo(arguments: Demo) -> int:
    """Runs the demo; 0 if all went well."""
    warnings.filterwarnings("ignore", "No Pauling electronegativity")  # of helium, say: only its place in a formula
    card, out = model_card(), arguments.out
    print(f"model: {card['parameters']:,} parameters, trained on {card['training_crystals']:,} {card['data']}")
    start = time.monotonic()
    settings = ("num_samples", "temperature", "seed")
    flags = [f"--{name}={getattr(arguments, name)}" for name in settings]
    status = crystalformer(["sample", f"--out={out}", *flags])
    if status:
        return status
    print(f"speed: {steady_speed(arguments.num_samples):.0f} crystals a second, once compiled")
    possible = pd.read_csv(out / "samples.csv")["problem"].isna().to_numpy()
    crystals = Crystals(*(field[possible] for field in read_crystal_table(out / "samples.csv")))
    print(f"{(~possible).sum()} of {len(possible)} have no possible cell and are left out of what follows")
    structures = to_structures(crystals)
    report = evaluate(structures, requested=crystals.G, config=EvaluationConfig(strict=True))
    report.table.to_csv(out / "judged.csv", index=False)
    (out / "summary.json").write_text(json.dumps(report.summary, indent=1) + "\n")
    print(describe(report.summary))
    held_out = pd.DataFrame(held_out_statistics())
    write_picture(out / "crystals.png", structures, report.table, held_out, "Crystals drawn from the shipped model")
    print(f"picture: {out / 'crystals.png'}; everything in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(demo(tyro.cli(Demo)))
