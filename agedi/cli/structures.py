"""Reading of input structures, and writing of results as soon as they are ready."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from matterform.commandline import on_interrupt, say, this_command

if TYPE_CHECKING:
    import ase


def read_all(path: pathlib.Path) -> "list[ase.Atoms]":
    """The structures of a file; those that cannot be read are listed on standard error.

    Raises:
        ValueError: the file has no structure that can be read.
    """
    from matterform.io.formats import read_structures, to_atoms

    structures, refused = read_structures(path)
    for index, reason in refused.items():
        sys.stderr.write(f"agedi: {path}, structure {index} left out: {reason}\n")
    if not structures:
        raise ValueError(f"{path} holds no structure that can be read")
    return [to_atoms(structure) for structure in structures]


def read_one(path: pathlib.Path) -> "ase.Atoms":
    """The only structure of a file.

    Raises:
        ValueError: the file has no structure, or several.
    """
    structures = read_all(path)
    if len(structures) > 1:
        raise ValueError(
            f"{path} holds {len(structures)} structures, but one is expected; save the one to use in a file of its own"
        )
    return structures[0]


def write_results(
    folder: pathlib.Path, name: str, results: "Iterable[list[ase.Atoms]]", trajectory: bool, total: int
) -> None:
    """Appends the last frame of each result to NAME.traj; with `trajectory`, writes all its frames to NAME_i.traj.

    Results are written as soon as they are ready, and those written before Ctrl-C are kept. The first one replaces an
    earlier file of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = folder / (f"{name}_*.traj" if trajectory else f"{name}.traj")
    written = _write_each(folder, name, results) if trajectory else _append(where, results)
    count = 0

    def safe() -> str:
        return f"{_structures(count)} of {total} are in {where}; to start again: {this_command()}"

    with on_interrupt(safe):
        for _ in written:
            count += 1
    say(f"{_structures(count)} in {where}")


def write_by_structure(
    folder: pathlib.Path, name: str, results: "Iterator[list[ase.Atoms]]", trajectory: bool, counts: Sequence[int]
) -> None:
    """Writes the results of one structure to NAME.traj, or those of several to one NAME_structJ.traj per structure."""
    if len(counts) == 1:
        write_results(folder, name, results, trajectory, counts[0])
        return
    for number, count in enumerate(counts):
        part = (next(results) for _ in range(count))
        write_results(folder, f"{name}_struct{number}", part, trajectory, count)


@contextlib.contextmanager
def timed(label: str, show: bool) -> Iterator[None]:
    """Prints the wall time (s) of the block if `show` is set."""
    begin = time.perf_counter()
    yield
    if show:
        say(f"{label} took {time.perf_counter() - begin:.1f} s, compilation included")


def _write_each(folder: pathlib.Path, name: str, results: "Iterable[list[ase.Atoms]]") -> Iterator[None]:
    """Writes the frames of every result to a file of its own."""
    from matterform.io.formats import write_structures

    for number, frames in enumerate(results):
        write_structures(folder / f"{name}_{number}.traj", frames)
        yield


def _append(path: pathlib.Path, results: "Iterable[list[ase.Atoms]]") -> Iterator[None]:
    """Writes last frames to one trajectory, which can be read while sampling goes on."""
    from ase.io.trajectory import TrajectoryWriter

    with contextlib.ExitStack() as stack:
        writer = None
        for frames in results:
            writer = writer or stack.enter_context(TrajectoryWriter(path))
            writer.write(frames[-1])
            yield


def _structures(count: int) -> str:
    return f"{count} structure{'s' * (count != 1)}"
