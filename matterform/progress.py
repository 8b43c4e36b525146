"""A progress bar on standard error."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(label: str, total: int | None = None, completed: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields a function that displays the number done so far; no output if standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    import rich.console
    import rich.progress

    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=completed)
        yield lambda done: bar.update(task, completed=done)
