"""Reasons to stop a run (signals, the time limit), and agreement on them between processes."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

Outcome = Literal["finished", "early_stop", "time_limit", "interrupted"]
STOPS: tuple[Outcome | None, ...] = (None, "time_limit", "interrupted")  # reasons that can occur between two steps


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM or SIGINT was received; only the main thread receives signals.

    The previous handlers are restored after the first signal, so that a second one ends the process, and at the end.
    """
    received: list[int] = []
    former: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in former.items():
            # None: the handler was not set from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        former.clear()

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        former |= {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        restore()


def stop_agreed(reason: Outcome | None, at_meeting: bool) -> Outcome | None:
    """The reason why all processes stop now, or None; several processes stop only at a meeting, if any has a reason."""
    if jax.process_count() == 1:
        return reason
    if not at_meeting:
        return None
    return STOPS[int(multihost_utils.process_allgather(np.asarray(STOPS.index(reason))).max())]
