"""Who watches a run: a live display only on a terminal, and never over a debugger's prompt."""

import errno
import io
import sys
from collections.abc import Mapping
from typing import ClassVar

import pytest
from rich.console import Console

from orchestrator.cli.display import Lines, Live, observer_for
from orchestrator.runners.watch import Silent, Watch
from tests.unit.search_case import search, trial


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


def test_a_log_tells_each_new_best_and_now_and_then_how_a_search_stands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines()
    lines.search(search())
    lines.search(search())
    assert capsys.readouterr().out.splitlines() == [
        "best so far: trial-004, val/loss 0.1 at epoch 4, lr=0.04938 hidden=[64, 32]",
        "search: 3/8 trials finished · 2 running · 1 pruned · 1 failed · best trial-004 val/loss 0.1 · eta 20s",
    ]
    lines.search(search(trial(4, "RUNNING", 0.09)))  # itself once more: not at once
    assert capsys.readouterr().out == ""
    lines.search(search(best="trial-003"))
    assert capsys.readouterr().out.startswith("best so far: trial-003, val/loss 0.25")
    lines.search(search(best="trial-003", state="RETRAINING"))
    assert "training the best once more" in capsys.readouterr().out


def test_a_terminal_shows_the_trials_and_then_the_bar_again() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, height=40, color_system=None)

    def shown() -> str:
        output.truncate(0)
        live._bars.refresh()
        return output.getvalue()

    with Live(console) as live:
        live._bars.live.auto_refresh = False
        assert "starting" in shown()
        live.search(search())
        screen = shown()
        assert "starting" not in screen
        assert "time left    about 20s" in screen
        assert "trial-005  RUNNING" in screen
        assert "ValueError: no such layer" in screen
        live.search(search(state="RETRAINING"))
        screen = shown()
        assert "trial-005" not in screen
        assert "best so far  trial-004" in screen
        assert "starting" in screen
        live.search(search(state="ENDED"))
        assert "trial-004" not in shown()


def test_a_search_is_passed_on_and_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    class Seen(Silent):
        found: ClassVar[list[object]] = []

        def search(self, summary: Mapping[str, object]) -> None:
            self.found.append(summary)
            raise BrokenPipeError

    watch = Watch(Seen(), str)
    with caplog.at_level("INFO"):
        watch.show_search(search())
        watch.show_search(search())
    assert Seen.found == [search(), search()]
    assert caplog.text.count("3/8 trials finished") == 1
