"""The Pareto front of a search with several objectives, as a PNG file.

`summary` is the content of `search/summary.json`. Imports: numpy; the table of the search; drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from orchestrator.export.drawing import BEST, INK, SOFT, dots, dress, figures_of, save, say, wants_log
from orchestrator.export.search_table import Summary, Trial, objectives, pareto_trials, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_OBJECTIVES = 4
_MOST_LABELS = 12


def pareto_picture(summary: Summary, path: Path) -> None:
    """All trials by two objectives, or by each pair of up to four, and those that no other one beats in all."""
    told = objectives(summary)[:_MOST_OBJECTIVES]
    pairs = list(combinations(range(len(told)), 2))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, grid = figures_of(5.4 * columns + 0.8, 4.4 * rows, rows, columns)
    front = {trial["id"] for trial in pareto_trials(summary)}
    for place, (first, second) in enumerate(pairs):
        axes = grid[place]
        points = [
            (
                trial,
                value_of(trial, told[first][0], first=not first),
                value_of(trial, told[second][0], first=False),
            )
            for trial in summary["trials"]
            if trial["state"] != "FAILED"
        ]
        _pareto_panel(
            axes, [point for point in points if None not in point[1:]], front, told[first], told[second]
        )
    for axes in grid[len(pairs) :]:
        axes.set_axis_off()
    several = f"{len(front)} of {len(summary['trials'])} trials"
    figure.suptitle(f"Pareto front: {several}", fontsize=12)
    if len(told) < len(objectives(summary)):
        figure.supxlabel(
            f"the first {len(told)} of {len(objectives(summary))} objectives", fontsize=8, color=SOFT
        )
    save(figure, path)


def _pareto_panel(
    axes: Axes,
    points: Sequence[tuple[Trial, Any, Any]],
    front: set[str],
    across: tuple[str, str],
    up: tuple[str, str],
) -> None:
    best = sorted((x, y, trial["id"]) for trial, x, y in points if trial["id"] in front)
    rest = [(x, y) for trial, x, y in points if trial["id"] not in front]
    for values, axis in ((_column(points, 1), "x"), (_column(points, 2), "y")):
        if wants_log(values):
            (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    if rest:
        axes.plot(*np.array(rest).T, "o", **dots("#9db4d0", len(points)), label="other trials")
    if best:
        xs, ys = np.array([point[0] for point in best]), np.array([point[1] for point in best])
        if _is_staircase(ys):
            axes.step(xs, ys, where=_corner(across[1]), color=BEST, linewidth=1.3, alpha=0.6)
        axes.plot(
            xs, ys, "o", color=BEST, markersize=6.5, markeredgecolor="white", label="Pareto front", zorder=4
        )
        if len(best) <= _MOST_LABELS:
            for x, y, name in best:
                axes.annotate(
                    *(name, (x, y)),
                    xytext=(6, 5),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=INK,
                    zorder=5,
                )
    arrow = {"min": "lower", "max": "higher"}
    dress(axes, "", f"{across[0]} ({arrow[across[1]]} is better)", f"{up[0]} ({arrow[up[1]]} is better)")
    axes.margins(0.08)
    if points:
        axes.legend(frameon=False, fontsize=8.5, loc="best")
    else:
        say(axes, "no trial has both values")


def _corner(mode: str) -> Literal["post", "pre"]:
    """Which way the staircase turns: a trial covers all that is worse than it."""
    return "post" if mode == "min" else "pre"


def _is_staircase(ys: np.ndarray[Any, Any]) -> bool:
    """Whether the front goes one way only: in a pair of several objectives it need not."""
    steps = np.diff(ys)
    return bool((steps <= 0).all() or (steps >= 0).all())


def _column(points: Sequence[tuple[Any, ...]], index: int) -> np.ndarray[Any, Any]:
    return np.array([point[index] for point in points], dtype=float)
