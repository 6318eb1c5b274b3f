"""How a run is shown while it goes on: a live display on a terminal, plain lines elsewhere.

Imports: rich, at first use.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.monitor import search_lines
from orchestrator.monitor.progress_lines import format_duration, format_progress
from orchestrator.records import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from orchestrator.runners.watch import Observer

_LINE_EVERY_S = 5.0
_SEARCH_LINE_EVERY_S = 15.0
_TRIALS_SHOWN = 12


class Lines:
    """Plain lines for logs: every message, each epoch, and one line in a few seconds at most. Of a search: each
    trial that becomes the best, and now and then how it stands."""

    def __init__(self) -> None:
        self._shown_s = 0.0
        self._epoch = -1
        self._search_shown_s = 0.0
        self._best_shown_s = 0.0
        self._best = ("", "")
        self._state = ""

    def message(self, text: str) -> None:
        print(text, flush=True)

    def progress(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if progress.phase != "training":
            return
        if progress.epoch != self._epoch or now_s - self._shown_s >= _LINE_EVERY_S:
            self._shown_s, self._epoch = now_s, progress.epoch
            print(format_progress(progress), flush=True)

    def search(self, summary: Mapping[str, Any]) -> None:
        now_s = time.monotonic()
        best, state = search_lines.best_trial(summary), str(summary.get("state"))
        if best is not None:
            trial, result = str(best["id"]), search_lines.format_result(summary, best)
            # A trial that betters itself with each epoch is told now and then, another one at once.
            if trial != self._best[0] or (
                result != self._best[1] and now_s - self._best_shown_s >= _SEARCH_LINE_EVERY_S
            ):
                self._best, self._best_shown_s = (trial, result), now_s
                print(search_lines.format_best(summary), flush=True)
        if state != self._state or now_s - self._search_shown_s >= _SEARCH_LINE_EVERY_S:
            self._state, self._search_shown_s = state, now_s
            print(search_lines.format_search(summary), flush=True)


class Live:
    """A bar over the steps with epoch, throughput, losses and the time left; while a search goes on, its trials."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._console = console
        self._last: Progress | None = None
        self._above: RenderableType | None = None
        self._searching = False
        display = self

        class _Display(Bars):
            def get_renderables(self) -> Iterator[RenderableType]:
                if display._above is not None:
                    yield display._above
                if not display._searching:
                    yield self.make_tasks_table(self.tasks)

        self._bars = _Display(
            TextColumn("[bold]{task.fields[phase]}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,
        )
        self._task: Any = self._bars.add_task("run", total=None, phase="starting", facts="")

    def message(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def progress(self, progress: Progress) -> None:
        last = self._last or progress
        # What an evaluation does not tell is as it was before.
        self._last = progress = replace(
            progress,
            samples_per_s=progress.samples_per_s or last.samples_per_s,
            train_loss=last.train_loss if progress.train_loss is None else progress.train_loss,
            val_loss=last.val_loss if progress.val_loss is None else progress.val_loss,
        )
        facts = [
            f"epoch {progress.epoch}/{progress.max_epochs}",
            f"step {progress.step:,}/{progress.max_steps:,}",
        ]
        if progress.samples_per_s:
            facts.append(f"{progress.samples_per_s:,.0f} samples/s")
        if progress.train_loss is not None:
            facts.append(f"train {progress.train_loss:.4f}")
        if progress.val_loss is not None:
            facts.append(f"val {progress.val_loss:.4f}")
        if progress.eta_s is not None:
            facts.append(f"ETA {format_duration(progress.eta_s)}")
        self._bars.update(
            self._task,
            total=progress.max_steps or None,
            completed=progress.step,
            phase=progress.phase,
            facts=" · ".join(facts) if progress.max_steps else "",
        )

    def search(self, summary: Mapping[str, Any]) -> None:
        self._above = _search_table(summary)
        self._searching = summary.get("state") == "SEARCHING"
        if summary.get("state") == "ENDED":
            self._above = None

    def __enter__(self) -> Live:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()


def _search_table(summary: Mapping[str, Any]) -> RenderableType:
    """What is known of a search, and while it goes on its running and newest finished trials."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table(box=None, pad_edge=False, show_header=False)
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for label, text in search_lines.facts(summary):
        head.add_row(label, Text(text))
    if summary.get("state") != "SEARCHING":
        return head
    table = Table(box=None, pad_edge=False, header_style="bold")
    *names, params = search_lines.columns(summary)
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column(params)  # the one column that may be cut, and a row stays one line
    shown = search_lines.live_trials(summary, _TRIALS_SHOWN)
    for trial, cells in zip(shown, search_lines.rows(summary, shown), strict=True):
        style = "bold" if trial["id"] == summary.get("best") else "red" if trial["state"] == "FAILED" else ""
        table.add_row(*(Text(cell, style, no_wrap=True, overflow="ellipsis") for cell in cells))
    return Group(head, Text(), table) if shown else head


def silence() -> None:
    """Print nothing any more, where standard output cannot be written: nor may Python, as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def observer_for(kind: Literal["auto", "lines", "quiet"]) -> Iterator[Observer]:
    """A live display where standard output is a terminal, lines where it is not, nothing for 'quiet'.

    Runs in this process take 'lines': a live display would paint over a debugger's prompt.
    """
    if kind == "quiet":
        from orchestrator.runners.watch import Silent

        yield Silent()
    elif kind == "lines" or not sys.stdout.isatty():
        yield Lines()
    else:
        from rich.console import Console

        with Live(Console()) as live:
            yield live
