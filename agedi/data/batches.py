"""Batches of a data set: rows gathered from flat arrays and padded to one length."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from agedi.data.dataset import Dataset
from agedi.data.example import GraphExample
from agedi.data.graph import AtomsGraph


class FlatAtoms(NamedTuple):
    """The atoms of all structures one after another."""

    first: Int[np.ndarray, " n"]  # index of each structure's first atom
    count: Int[np.ndarray, " n"]  # atoms of each structure
    x: Int[np.ndarray, " m"]
    pos: Float[np.ndarray, "m 3"]
    fixed: Bool[np.ndarray, " m"]
    forces: Float[np.ndarray, "m 3"]


class Slots(NamedTuple):
    """The atom in each slot of a batch."""

    present: Bool[np.ndarray, "b n"]  # False for padding
    atom: Int[np.ndarray, "b n"]  # index into `FlatAtoms`
    copy: Int[np.ndarray, "b n"]  # copy of the cell that the atom belongs to


def make_take(dataset: Dataset) -> Callable[[Int[np.ndarray, " b"], int], GraphExample]:
    """Returns `take(rows, length)`: the batch of these rows of the `Dataset`, padded to `length` atoms."""
    flat = _flatten(dataset)
    cells, pbcs, walls = (
        np.stack([getattr(graph, name) for graph in dataset.graphs]) for name in ("cell", "pbc", "confinement")
    )
    per_atom = {name: np.concatenate(values) for name, values in dataset.conditions.items() if values[0].ndim == 1}
    per_graph = {name: np.stack(values) for name, values in dataset.conditions.items() if values[0].ndim == 0}

    def take(rows: Int[np.ndarray, " b"], length: int) -> GraphExample:
        original, copies = rows % len(dataset.graphs), 1 + rows // len(dataset.graphs)
        slots, cell = _slots(flat, original, copies, length), cells[original]
        along = np.stack([slots.copy // copies[:, None], slots.copy % copies[:, None]], axis=-1)
        offset = np.einsum("bna,bai->bni", along, cell[:, :2]).astype(np.float32)
        graph = AtomsGraph(
            x=_gather(flat.x, slots),
            pos=np.where(slots.present[..., None], flat.pos[slots.atom] + offset, np.float32(0)),
            cell=(cell * np.stack([copies, copies, np.ones_like(copies)], axis=1)[..., None]).astype(np.float32),
            pbc=pbcs[original],
            mask=_gather(flat.fixed, slots),
            present=slots.present,
            confinement=walls[original],
        )
        conditions = {name: _gather(values, slots) for name, values in per_atom.items()}
        for name, values in per_graph.items():
            factor = copies**2 if name in dataset.extensive else 1
            conditions[name] = (values[original] * factor).astype(values.dtype)
        return GraphExample(
            graph=graph,
            conditions={name: conditions[name] for name in dataset.conditions},
            energy=(dataset.energies[original] * copies**2).astype(np.float32),
            forces=_gather(flat.forces, slots),
            diffuse=dataset.diffuse[original],
            index=rows.astype(np.int32),
        )

    return take


def _flatten(dataset: Dataset) -> FlatAtoms:
    count = np.array([len(graph.x) for graph in dataset.graphs])
    x, pos, fixed = (
        np.concatenate([getattr(graph, name) for graph in dataset.graphs]) for name in ("x", "pos", "mask")
    )
    forces = np.concatenate(dataset.forces).astype(np.float32)
    return FlatAtoms(np.concatenate([[0], np.cumsum(count)[:-1]]), count, x, pos, fixed, forces)


def _slots(flat: FlatAtoms, original: Int[np.ndarray, " b"], copies: Int[np.ndarray, " b"], length: int) -> Slots:
    """Slots of a batch; atoms of a repeated cell come copy by copy, in ASE's order."""
    count, slot = flat.count[original, None], np.arange(length)
    present = slot < count * copies[:, None] ** 2
    atom = np.where(present, flat.first[original, None] + slot % count, 0)
    return Slots(present, atom, slot // count)


def _gather(values: np.ndarray, slots: Slots) -> np.ndarray:
    """Values of atoms in the slots of a batch, 0 in padding."""
    found = values[slots.atom]
    present = slots.present.reshape(*slots.present.shape, *(1,) * (found.ndim - 2))
    return np.where(present, found, values.dtype.type(0))
