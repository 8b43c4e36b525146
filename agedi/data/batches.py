"""Batches of a data set: rows gathered from flat arrays and padded to one length."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from agedi.data.dataset import Dataset
from agedi.data.example import GraphExample
from agedi.data.graph import AtomsGraph


def make_take(dataset: Dataset) -> Callable[[Int[np.ndarray, " b"], int], GraphExample]:
    """Returns `take(rows, length)`, the batch of some rows padded to `length` atoms; rows are those of `Dataset`."""
    count = len(dataset.graphs)
    sizes = np.array([len(graph.x) for graph in dataset.graphs])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    x, pos, fixed = (
        np.concatenate([getattr(graph, name) for graph in dataset.graphs]) for name in ("x", "pos", "mask")
    )
    cells, pbcs, walls = (
        np.stack([getattr(g, name) for g in dataset.graphs]) for name in ("cell", "pbc", "confinement")
    )
    forces = np.concatenate(dataset.forces).astype(np.float32)
    is_node = {name: values[0].ndim == 1 for name, values in dataset.conditions.items()}
    conditions = {
        name: np.concatenate(values) if is_node[name] else np.stack(values)
        for name, values in dataset.conditions.items()
    }

    def take(rows: Int[np.ndarray, " b"], length: int) -> GraphExample:
        original, copies = rows % count, 1 + rows // count
        own = sizes[original]
        slot = np.arange(length)
        present = slot < (own * copies**2)[:, None]
        # Atoms of a repeated cell come copy by copy, in ASE's order.
        atom = np.where(present, starts[original, None] + slot % own[:, None], 0)
        image = slot // own[:, None]
        cell = cells[original]
        along = np.stack([image // copies[:, None], image % copies[:, None]], axis=-1)
        offset = np.einsum("bna,bai->bni", along, cell[:, :2]).astype(np.float32)

        def of_atoms(values: np.ndarray) -> np.ndarray:
            found = values[atom]
            return np.where(present.reshape(*present.shape, *(1,) * (found.ndim - 2)), found, values.dtype.type(0))

        def condition(name: str, values: np.ndarray) -> np.ndarray:
            if is_node[name]:
                return of_atoms(values)
            factor = copies**2 if name in dataset.extensive else 1
            return (values[original] * factor).astype(values.dtype)

        graph = AtomsGraph(
            x=of_atoms(x),
            pos=np.where(present[..., None], pos[atom] + offset, np.float32(0)),
            cell=(cell * np.stack([copies, copies, np.ones_like(copies)], axis=1)[..., None]).astype(np.float32),
            pbc=pbcs[original],
            mask=of_atoms(fixed),
            present=present,
            confinement=walls[original],
        )
        return GraphExample(
            graph=graph,
            conditions={name: condition(name, values) for name, values in conditions.items()},
            energy=(dataset.energies[original] * copies**2).astype(np.float32),
            forces=of_atoms(forces),
            diffuse=dataset.diffuse[original],
            index=rows.astype(np.int32),
        )

    return take
