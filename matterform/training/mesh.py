"""One mesh axis over all devices of all processes: parameters replicated, batches split by rows."""

import contextlib
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh() -> Mesh:
    """A mesh of every device of every process along the axis "data"."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def make_local_mesh() -> Mesh:
    """A mesh of this process's own devices along the axis "data", for work that is not shared with other processes."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def initialize_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects this process to the others; must be called before any use of a device.

    Under SLURM, GKE and similar systems JAX finds all three values itself. Otherwise, pass every process the same
    `coordinator` ("host:port", reachable from all), the number of processes and its own index. Without accelerators,
    processes communicate by gloo, the default of JAX.
    """
    jax.distributed.initialize(coordinator, num_processes, process_id)


@runtime_checkable
class Processes(Protocol):
    """Flags of training commands that connect the processes of a run."""

    @property
    def several(self) -> bool: ...
    @property
    def coordinator(self) -> str | None: ...
    @property
    def num_processes(self) -> int | None: ...
    @property
    def process_id(self) -> int | None: ...


def connect(processes: Processes) -> None:
    """Calls `initialize_distributed` if a command runs in several processes."""
    if processes.several:
        initialize_distributed(processes.coordinator, processes.num_processes, processes.process_id)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that places a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_rows(mesh: Mesh) -> NamedSharding:
    """The sharding that places an equal, contiguous part of the leading axis on each device."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies arrays, which must be equal in all processes, to every device.

    The result shares no memory with `tree`, so a step may donate it.
    """
    return jax.device_put(jax.tree.map(np.asarray, tree), replicated(mesh), may_alias=False)


def to_global(mesh: Mesh, local_batch: Any) -> Any:
    """Concatenates the rows of all processes, in process order, to global arrays split over all devices."""
    return jax.make_array_from_process_local_data(split_by_rows(mesh), local_batch)


def together(what: str) -> contextlib.AbstractContextManager[None]:
    """A context manager whose block fails in all processes if it fails in one; otherwise the others would hang.

    Raises:
        ValueError: the block failed in another process; the message gives `what` and the number of that process.
    """
    return _Together(what)


class _Together(contextlib.AbstractContextManager[None]):
    def __init__(self, what: str) -> None:
        self._what = what

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.asarray(error is not None))
            if error is None and failed.any():
                raise ValueError(
                    f"{self._what} failed in process {int(np.argmax(failed))}; see the error of that process"
                )
