"""Who watches a run: a live display only on a terminal, and never over a debugger's prompt."""

import sys

import pytest

from orchestrator.cli.display import Lines, Live, observer_for
from orchestrator.runners.watch import Silent


def test_runs_in_this_process_are_shown_as_lines_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with observer_for("lines") as observer:
        assert isinstance(observer, Lines)
    with observer_for("auto") as observer:
        assert isinstance(observer, Live)
    with observer_for("quiet") as observer:
        assert isinstance(observer, Silent)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    with observer_for("auto") as observer:
        assert isinstance(observer, Lines)
