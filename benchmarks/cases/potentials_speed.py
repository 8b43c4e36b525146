"""How fast do potentials evaluate crystals in batches, compared with one by one and with their package's own calls?

    python benchmarks/cases/potentials_speed.py --count 24 --out benchmarks/results/potentials_speed.jsonl

One JSON line per model and quantity, for the packages that are installed: CPU seconds (with one thread those of a
quiet machine, whatever else is running) for all crystals at each batch size; `speedup` is one by one over the default
batch size, which must be at least 1. CHGNet has its real weights, the others random ones of the published sizes (matgl:
the package's default sizes). Calculators of Orb, MACE and matgl always compute forces and stress. The crystals are the
first of MP-20's binaries and ternaries.
"""

import argparse
import importlib.util
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import timing
from matterform.io.formats import read_structures
from matterform.potentials import chgnet, mace, matgl, orb
from matterform.potentials.torch_state import torch_threads, unchanged_process

DATA = pathlib.Path(os.environ.get("MATTERFORM_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))
BATCH_SIZES = (1, 4, 8, 16, 32, 64)

Case = tuple[str, str, int | None, Callable[[int | None], Callable[[Sequence], Any]], Callable[[Sequence], Any] | None]


def chgnet_cases(device: str) -> Iterator[Case]:
    """CHGNet, against its own `predict_structure` at its own batch size."""
    from chgnet.model.model import CHGNet

    with unchanged_process():
        model = CHGNet.load(use_device=device, verbose=False)

    for wanted, task in (("energy", "e"), ("stress", "efs")):
        yield (
            "chgnet 0.3.0",
            wanted,
            chgnet.BATCH_SIZE,
            lambda size, wanted=wanted: _predict(chgnet.load_chgnet(device=device, batch_size=size), wanted),
            lambda structures, task=task: model.predict_structure(structures, task=task, batch_size=16),
        )


def orb_cases(device: str) -> Iterator[Case]:
    """Orb with random weights of full size, against its ASE calculator."""
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.atomic_system import SystemConfig
    from orb_models.forcefield.calculator import ORBCalculator

    for name, neighbors in (("orb_v2", 20), ("orb_v3_direct", 20), ("orb_v3_conservative", 120)):
        with unchanged_process():
            architecture = getattr(pretrained, f"{name}_architecture")
            model = architecture(device=device, system_config=SystemConfig(6.0, neighbors)).eval()
        for wanted in ("energy", "stress"):
            yield (
                f"{name} ({neighbors} neighbors)",
                wanted,
                orb.BATCH_SIZE,
                lambda size, wanted=wanted, model=model: _predict(
                    orb.orb_potential(model, device=device, batch_size=size), wanted
                ),
                _calculate(ORBCalculator(model, device=device), wanted),
            )


def mace_cases(device: str) -> Iterator[Case]:
    """MACE with random weights of the sizes of MACE-MP-0 small and medium, against its ASE calculator."""
    import torch

    with unchanged_process():
        from mace import modules
        from mace.calculators import MACECalculator
    from e3nn import o3

    for name, irreps in (("mace 128x0e", "128x0e"), ("mace 128x0e+128x1o", "128x0e+128x1o")):
        with unchanged_process():
            model = modules.ScaleShiftMACE(
                atomic_inter_scale=1.0,
                atomic_inter_shift=0.0,
                r_max=6.0,
                num_bessel=10,
                num_polynomial_cutoff=5,
                max_ell=3,
                interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
                interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
                num_interactions=2,
                num_elements=94,
                hidden_irreps=o3.Irreps(irreps),
                MLP_irreps=o3.Irreps("16x0e"),
                gate=torch.nn.functional.silu,
                atomic_energies=np.zeros(94),
                avg_num_neighbors=60.0,
                atomic_numbers=list(range(1, 95)),
                correlation=3,
            ).to(device)
            calculator = MACECalculator(models=[model], device=device, default_dtype="float32")
        for wanted in ("energy", "stress"):
            yield (
                name,
                wanted,
                None,
                lambda size, wanted=wanted, model=model: _predict(mace.mace_potential(model, batch_size=size), wanted),
                _calculate(calculator, wanted),
            )


def matgl_cases(device: str) -> Iterator[Case]:
    """M3GNet as a potential, against its ASE calculator, and MEGNet of the size of the published band gaps."""
    import torch
    from matgl.apps.pes import Potential
    from matgl.ext.ase import PESCalculator
    from matgl.models import M3GNet, MEGNet

    potential = Potential(model=M3GNet(is_intensive=False)).to(device)
    for wanted in ("energy", "stress"):
        yield (
            "matgl M3GNet",
            wanted,
            matgl.BATCH_SIZE,
            lambda size, wanted=wanted: _predict(matgl.matgl_potential(potential, batch_size=size), wanted),
            _calculate(PESCalculator(potential, stress_unit="eV/A3"), wanted) if device == "cpu" else None,
        )
    model = MEGNet(ntypes_state=4, dim_state_embedding=16, include_state=True, cutoff=5.0, niters_set2set=3).to(device)
    state = torch.tensor([0])
    yield (
        "matgl MEGNet",
        "band gap",
        matgl.PROPERTY_BATCH_SIZE,
        lambda size: matgl.matgl_property(model, fidelity=0, batch_size=size).predict,
        lambda structures: [model.predict_structure(structure, state) for structure in structures],
    )


CASES = {"chgnet": chgnet_cases, "matgl": matgl_cases, "mace": mace_cases, "orb_models": orb_cases}


def main() -> None:
    """Measures every installed package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--packages", default=",".join(CASES), help="packages to measure, separated by commas")
    parser.add_argument("--count", type=int, default=64, help="number of crystals (default: %(default)s)")
    parser.add_argument("--sizes", default=",".join(map(str, BATCH_SIZES)), help="batch sizes, separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="device of the models")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of PyTorch")
    parser.add_argument("--quick", action="store_true", help="4 crystals, once")
    arguments = parser.parse_args()
    count, repeats = (4, 1) if arguments.quick else (arguments.count, arguments.repeats)
    structures, _ = read_structures(DATA / "mp20_biternary.csv.gz", limit=count)
    warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")  # CHGNet's own
    for package in arguments.packages.split(","):
        if importlib.util.find_spec(package) is None:
            continue
        for case in CASES[package](arguments.device):
            with torch_threads(arguments.threads):
                row = measure(case, structures, [int(size) for size in arguments.sizes.split(",")], repeats)
            timing.report({**row, "threads": arguments.threads, "torch_device": arguments.device}, arguments.out)


def measure(case: Case, structures: Sequence, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Times one model at every batch size, in turns."""
    name, wanted, default, make, plain = case
    sizes = sorted({1, *(size for size in sizes if size <= len(structures)), *([] if default is None else [default])})
    calls = {f"batch_{size}": _call(make(size), structures) for size in sizes}
    usual = f"batch_{default}"
    if default is None:  # the number depends on the crystals
        usual = "batch_by_atoms"
        calls[usual] = _call(make(None), structures)
    if plain is not None:
        calls["package"] = _call(plain, structures)
    seconds = cpu_seconds(calls, repeats)
    best = min((key for key in seconds if key.startswith("batch_")), key=seconds.__getitem__)
    return {
        "benchmark": "potentials_speed",
        "model": name,
        "wanted": wanted,
        "crystals": len(structures),
        "atoms": sum(len(structure) for structure in structures),
        "seconds": seconds,
        "default_batch_size": default,
        "fastest": best,
        "speedup": seconds["batch_1"] / seconds[usual],
        **({} if plain is None else {"speedup_over_package": seconds["package"] / seconds[usual]}),
    }


def cpu_seconds(calls: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each call after a first one; the calls take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}


def _call(function: Callable[[Sequence], Any], structures: Sequence) -> Callable[[], None]:
    def call() -> None:
        function(structures)

    return call


def _predict(potential: Any, wanted: str) -> Callable[[Sequence], Any]:
    return lambda structures: potential.predict(structures, wanted)


def _calculate(calculator: Any, wanted: str) -> Callable[[Sequence], Any]:
    """One crystal after the other through ASE."""

    def calculate(structures: Sequence) -> None:
        for structure in structures:
            atoms = structure.to_ase_atoms(msonable=False)
            atoms.calc = calculator
            atoms.get_potential_energy()
            if wanted == "stress":
                atoms.get_stress()

    return calculate


if __name__ == "__main__":
    main()
