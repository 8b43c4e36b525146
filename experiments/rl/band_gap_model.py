"""Trains a MEGNet (matgl) on the band gaps of a table of crystals, as the property reward of `small.py gap`.

    python experiments/rl/band_gap_model.py --table mp20_biternary.csv.gz --out runs/gap_model

Writes the folder that the reward `property` of `crystalformer ppo` takes as --property-path, and errors.json with the
errors on held-out crystals. A brief training on few crystals: accurate enough for a reward, not for publication.
"""

import dataclasses
import json
import pathlib
import sys
import time

import numpy as np
import pandas as pd
import torch
import tyro
from matgl.ext.pymatgen import Structure2Graph
from matgl.models import MEGNet
from torch_geometric.data import Batch, Data

from matterform import parse_structure, progress_bar, write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains on nine tenths of a table and tests on the rest."""

    table: pathlib.Path  # CSV with the columns cif and `column`
    out: pathlib.Path  # folder to write; it appears whole or not at all
    column: str = "band_gap"  # column with the band gap, eV
    epochs: int = 40  # number of passes over the training set
    batch_size: int = 64  # number of crystals per step
    learning_rate: float = 2e-3  # learning rate of Adam at the start of a cosine schedule
    cutoff: float = 5.0  # radius within which atoms are neighbours, Å
    seed: int = 0  # random seed of weights, held-out crystals and batches
    threads: int = 1  # number of threads of PyTorch


def make_graph(converter: Structure2Graph, cif: str, value: float) -> Data:
    """A crystal as input of the network, with its target."""
    graph, lattice, _ = converter.get_graph(parse_structure(cif))
    graph.pbc_offshift = graph.pbc_offset @ lattice[0]
    graph.pos = graph.frac_coords @ lattice[0]
    graph.y = torch.tensor([value], dtype=torch.float32)
    return graph


def predict(model: MEGNet, graphs: list[Data], batch_size: int) -> np.ndarray:
    """Values of all graphs, in order."""
    model.eval()
    parts = [Batch.from_data_list(graphs[i : i + batch_size]) for i in range(0, len(graphs), batch_size)]
    with torch.no_grad():
        return np.concatenate([model(g=part, state_attr=states(part)).reshape(-1).numpy() for part in parts])


def states(batch: Batch) -> torch.Tensor:
    """The state attributes of every crystal: zeros, for a model without fidelities."""
    return torch.zeros(batch.num_graphs, 2)


def train(arguments: Train) -> int:
    """Trains, tests and saves the model."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rng, start = np.random.default_rng(arguments.seed), time.monotonic()
    table = pd.read_csv(arguments.table).dropna(subset=[arguments.column])
    model = MEGNet(cutoff=arguments.cutoff)
    converter = Structure2Graph(element_types=model.element_types, cutoff=arguments.cutoff)
    graphs = [make_graph(converter, *row) for row in zip(table["cif"], table[arguments.column], strict=True)]
    print(f"{len(graphs)} crystals read in {time.monotonic() - start:.0f} s")
    order = rng.permutation(len(graphs))
    held_out, training = np.split(order, [len(order) // 10])
    test = [graphs[i] for i in held_out]
    truth = np.array([float(graph.y) for graph in test])
    steps = -(-len(training) // arguments.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs * steps)
    with progress_bar("training", arguments.epochs) as progress:
        for epoch in range(1, arguments.epochs + 1):
            model.train()
            total, shuffled = 0.0, rng.permutation(training)
            for i in range(0, len(shuffled), arguments.batch_size):
                batch = Batch.from_data_list([graphs[j] for j in shuffled[i : i + arguments.batch_size]])
                loss = (model(g=batch, state_attr=states(batch)).reshape(-1) - batch.y).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item() * batch.num_graphs
            error = np.abs(predict(model, test, 256) - truth).mean()
            print(f"epoch {epoch}: training error {total / len(training):.4f} eV, held out {error:.4f} eV", flush=True)
            progress(epoch)
    predicted = predict(model, test, 256)
    insulators = truth > 0.5
    errors = {
        "training_crystals": len(training),
        "test_crystals": len(test),
        "mean_absolute_error_ev": float(np.abs(predicted - truth).mean()),
        "mean_absolute_error_of_the_median_ev": float(np.abs(np.median(truth) - truth).mean()),
        "mean_absolute_error_above_half_an_ev": float(np.abs(predicted - truth)[insulators].mean()),
        "correlation": float(np.corrcoef(predicted, truth)[0, 1]),
        "minutes": (time.monotonic() - start) / 60,
    }
    with write_atomically(arguments.out) as folder:
        folder.mkdir()
        model.save(str(folder))
        (folder / "errors.json").write_text(json.dumps(errors, indent=1) + "\n")
    print(json.dumps(errors, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(train(tyro.cli(Train)))
