"""Worker processes that end with the process that started them, however that ends."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection


@contextlib.contextmanager
def worker_pool(size: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """`size` processes for as long as the block lasts; an exception there, Ctrl-C too, ends them at once.

    Processes are spawned, since a fork of a process in which JAX lives can hang. A script must therefore keep
    what it does under `if __name__ == "__main__":`.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, concurrent.futures.ProcessPoolExecutor(size, context, _follow_parent, (reader,)) as pool:
        try:
            yield pool
        except BaseException:
            writer.close()  # otherwise the pool waits for everything that was submitted
            raise


@contextlib.contextmanager
def death_explained(message: str) -> Iterator[None]:
    """Turns the death of a worker into a ChildProcessError with `message`.

    The block holds the submissions as well as the results: a pool refuses work as soon as it notices.

    Raises:
        ChildProcessError: a worker died.
    """
    try:
        yield
    except concurrent.futures.BrokenExecutor as error:
        raise ChildProcessError(message) from error


def _follow_parent(reader: Connection) -> None:
    """In a worker: leaves Ctrl-C to the parent, and exits when the parent closes its end of the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after, args=(reader,), daemon=True).start()


def _exit_after(reader: Connection) -> None:
    reader.poll(None)  # nothing is ever sent, so this waits for the end of the file
    os._exit(1)
