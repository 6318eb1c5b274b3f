"""Who watches a run: a live display only on a terminal, and never over a debugger's prompt."""

import errno
import sys
from typing import ClassVar

import pytest

from orchestrator.cli.display import Lines, Live, observer_for
from orchestrator.runners.watch import Silent, Watch


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


def test_a_run_goes_on_where_nobody_can_see_it(caplog: pytest.LogCaptureFixture) -> None:
    """Its output is a file on a disk that is full for a while, or a pipe whose reader has gone."""

    class Full(Silent):
        full = True
        seen: ClassVar[list[str]] = []

        def message(self, text: str) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.seen.append(text)

    output = Full()
    watch = Watch(output, str)
    watch.say("lost")
    watch.say("lost too")
    output.full = False
    watch.say("seen")
    assert output.seen == ["seen"]
    assert caplog.text.count("cannot be shown") == 1
