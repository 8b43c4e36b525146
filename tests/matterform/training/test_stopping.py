"""Signals are noticed once, and processes that are alone stop at once."""

import contextlib
import signal
import threading

import pytest

from matterform.training.stopping import stop_agreed, stop_on_signals


def test_a_second_interrupt_acts_as_usual():
    # A process started in the background of a script ignores interrupts; this one must not, wherever tests run.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, former)
        asked = stack.enter_context(stop_on_signals())
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_threads_do_not_listen():
    seen = []

    def listen():
        with stop_on_signals() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize("at_meeting", [True, False])
def test_a_process_that_is_alone_stops_at_once(at_meeting):
    assert stop_agreed("interrupted", at_meeting) == "interrupted"
    assert stop_agreed(None, at_meeting) is None
