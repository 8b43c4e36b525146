"""Why a run stops: signals, the time limit, and how several processes agree on it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

Outcome = Literal["finished", "early_stop", "time_limit", "interrupted"]
STOPS: tuple[Outcome | None, ...] = (None, "time_limit", "interrupted")  # reasons that can arise between two steps


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM or SIGINT was received; only the main thread receives signals.

    After the first one, and at the end, the former handlers are restored, so that a second signal ends the process.
    """
    received: list[int] = []
    former: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in former.items():
            # None stands for a handler that was not set from Python, which cannot be put back.
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
    """Why all processes stop now: a single process at once, several only at a meeting, if any has a reason."""
    if jax.process_count() == 1:
        return reason
    if not at_meeting:
        return None
    return STOPS[int(multihost_utils.process_allgather(np.asarray(STOPS.index(reason))).max())]
