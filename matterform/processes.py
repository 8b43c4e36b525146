"""Worker processes that end with their parent process, even if it is killed."""

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
    """Starts `size` worker processes for the duration of the block; an exception in it, or Ctrl-C, ends them at once.

    Processes are spawned, because a fork of a process that uses JAX can hang. The code of a script must therefore be
    under `if __name__ == "__main__":`.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, concurrent.futures.ProcessPoolExecutor(size, context, _follow_parent, (reader,)) as pool:
        try:
            yield pool
        except BaseException:
            writer.close()  # otherwise the pool waits for all submitted tasks
            raise


@contextlib.contextmanager
def death_explained(message: str) -> Iterator[None]:
    """Converts the death of a worker process to an error with `message`.

    The block must contain the submissions as well as the results, because both can raise.

    Raises:
        ChildProcessError: a worker process died.

    Raises:
        ChildProcessError: a worker died.
    """
    try:
        yield
    except concurrent.futures.BrokenExecutor as error:
        raise ChildProcessError(message) from error


def _follow_parent(reader: Connection) -> None:
    """Runs in a worker: ignores Ctrl-C, and exits when the parent closes its end of the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after, args=(reader,), daemon=True).start()


def _exit_after(reader: Connection) -> None:
    reader.poll(None)  # nothing is sent, so this returns only when the pipe is closed
    os._exit(1)
