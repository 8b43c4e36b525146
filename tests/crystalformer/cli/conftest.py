"""A small run and its samples, made by the commands themselves."""

import csv

import pytest
from pymatgen.core import Lattice, Structure

from crystalformer.cli import main

SIZES = ["--Nf=2", "--Kx=2", "--Kl=2", "--n-max=5", "--h0-size=8", "--num-layers=1", "--num-heads=2"]
SIZES += ["--key-size=4", "--model-size=8", "--embed-size=4", "--batch-size=8"]


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A folder with crystals.csv, prepared/ and a run of two epochs in run/."""
    folder = tmp_path_factory.mktemp("cli")
    with (folder / "crystals.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["material_id", "cif"])
        for i, (cation, anion) in enumerate((c, a) for c in ("Na", "K", "Rb", "Cs") for a in ("F", "Cl", "Br", "I")):
            salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5 + 0.1 * i), [cation, anion], [[0] * 3, [0.5] * 3])
            table.writerow([f"salt-{i}", salt.to(fmt="cif")])
        table.writerow(["broken", "data_nothing"])
    assert main(["prepare", str(folder / "crystals.csv"), str(folder / "prepared"), "--n-max=5"]) == 0
    arguments = ["train", f"--train={folder / 'prepared'}", f"--run-dir={folder / 'run'}", *SIZES, "--epochs=2"]
    assert main([*arguments, "--optimizer=adamw", "--weight-decay=0.01", "--lamb-l=0.5", "--ema-decay=0.9"]) == 0
    return folder


@pytest.fixture(scope="session")
def samples(run):
    """Twenty crystals drawn by the run's weights."""
    flags = ["--spacegroup", "225", "1", "--elements", "Na", "Cl", "--num-samples=20", "--mcmc=1"]
    weights = run / "run" / "published" / "best.pkl"
    assert main(["sample", f"--model={weights}", f"--out={run / 'samples'}", *flags]) == 0
    return run / "samples"
