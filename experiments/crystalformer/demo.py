"""The demo of `make demo`: samples crystals from the shipped weights, evaluates and plots them; minutes on two cores.

    python experiments/crystalformer/demo.py --out demo

Writes CIFs with their symmetry, samples.csv (tokens of the model), judged.csv (validity and more, one row per
crystal), summary.json (shares with their protocol) and crystals.png.
"""

import dataclasses
import json
import pathlib
import sys
import time
import warnings

import pandas as pd
import tyro

import crystalformer
import matterform
from crystalformer.cli import main
from experiments.crystalformer import shipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Samples crystals, evaluates and plots them."""

    out: pathlib.Path = pathlib.Path("demo")  # folder for the results; must not contain an earlier demo
    num_samples: int = 300  # number of crystals to sample
    temperature: float = 1.0  # sampling temperature; 1: the distribution of the model
    seed: int = 42  # random seed


def demo(arguments: Demo) -> int:
    """Runs the demo; 0 if all went well."""
    warnings.filterwarnings("ignore", "No Pauling electronegativity")  # of helium, say: only its place in a formula
    card, out = crystalformer.model_card(), arguments.out
    print(f"model: {card['parameters']:,} parameters, trained on {card['training_crystals']:,} {card['data']}")
    start = time.monotonic()
    settings = ("num_samples", "temperature", "seed")
    flags = [f"--{name}={getattr(arguments, name)}" for name in settings]
    status = main(["sample", f"--out={out}", *flags])
    if status:
        return status
    print(f"speed: {shipped.steady_speed(arguments.num_samples):.0f} crystals per second, once compiled")
    possible = pd.read_csv(out / "samples.csv")["problem"].isna().to_numpy()
    crystals = crystalformer.Crystals(
        *(field[possible] for field in crystalformer.read_crystal_table(out / "samples.csv"))
    )
    print(f"{(~possible).sum()} of {len(possible)} have no possible cell and are left out of what follows")
    structures = crystalformer.to_structures(crystals)
    report = matterform.evaluate(structures, requested=crystals.G, config=matterform.EvaluationConfig(strict=True))
    report.table.to_csv(out / "judged.csv", index=False)
    (out / "summary.json").write_text(json.dumps(report.summary, indent=1) + "\n")
    print(matterform.describe(report.summary))
    held_out = pd.DataFrame(crystalformer.held_out_statistics())
    matterform.write_picture(
        out / "crystals.png", structures, report.table, held_out, "Crystals drawn from the shipped model"
    )
    print(f"picture: {out / 'crystals.png'}; everything in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(demo(tyro.cli(Demo)))
