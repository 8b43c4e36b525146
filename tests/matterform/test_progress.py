"""Progress is drawn on a terminal, and nowhere else."""

import io
import sys

from matterform.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nothing_is_written_where_standard_error_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("reading", 10) as progress:
        progress(3)
    assert sys.stderr.getvalue() == ""


def test_a_terminal_shows_what_is_done_of_how_many(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("reading", 10, completed=2) as progress:
        progress(7)
    text = sys.stderr.getvalue()
    assert "reading" in text
    assert " 7/10" in text
