"""How a run is shown while it goes on: a live display on a terminal, plain lines elsewhere.

Imports: rich, at first use.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.monitor.progress_lines import format_duration, format_progress
from orchestrator.records import Progress

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.runners.watch import Observer

_LINE_EVERY_S = 5.0


class Lines:
    """Plain lines for logs: every message, each epoch, and one line in a few seconds at most."""

    def __init__(self) -> None:
        self._shown_s = 0.0
        self._epoch = -1

    def message(self, text: str) -> None:
        print(text, flush=True)

    def progress(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if progress.phase != "training":
            return
        if progress.epoch != self._epoch or now_s - self._shown_s >= _LINE_EVERY_S:
            self._shown_s, self._epoch = now_s, progress.epoch
            print(format_progress(progress), flush=True)


class Live:
    """A bar over the steps with epoch, throughput, losses and the time left."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._console = console
        self._last: Progress | None = None
        self._bars = Bars(
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

    def __enter__(self) -> Live:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()


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
