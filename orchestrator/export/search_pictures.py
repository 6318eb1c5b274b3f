"""Pictures of a search, as PNG files: the best so far, learning curves, the importance of parameters.

`summary` is the content of `search/summary.json`. Imports: numpy; the table and the importance of the search; drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.export.drawing import (
    BEST,
    COLOURS,
    INK,
    OTHER,
    SOFT,
    dots,
    dress,
    figure_of,
    finite,
    legend_below,
    save,
    say,
    scale_scores,
    whole_numbers,
    wrapped,
)
from orchestrator.export.search_importance import FEWEST_TRIALS, Importance
from orchestrator.export.search_table import (
    Summary,
    Trial,
    best_trial,
    objectives,
    scored,
    short_names,
    value_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BARS = 20
_LONGEST = 34


def best_so_far_picture(summary: Summary, path: Path) -> None:
    """The score of every trial in the order in which they were made, and the best up to each."""
    metric, mode = objectives(summary)[0]
    trials = list(summary["trials"])
    number = {trial["id"]: index for index, trial in enumerate(trials, start=1)}
    pairs = scored(summary)
    figure, axes = figure_of(7.6, 4.4)
    places = np.array([number[trial["id"]] for trial, _ in pairs], dtype=float)
    scores = np.array([score for _, score in pairs], dtype=float)
    shown = scale_scores(axes, scores, mode)
    for state, colour in COLOURS.items():
        mine = np.array([trial["state"] == state for trial, _ in pairs], dtype=bool)
        if state != "FAILED" and mine.any():
            axes.plot(
                *(places[mine], shown[mine], "o"),
                **dots(colour, len(trials)),
                label=f"{state.lower()} ({mine.sum()})",
            )
    others = np.array([trial["state"] not in COLOURS for trial, _ in pairs], dtype=bool)
    if others.any():
        axes.plot(places[others], shown[others], "o", **dots(OTHER, len(trials)), label="not finished")
    failed = [number[trial["id"]] for trial in trials if trial["state"] == "FAILED"]
    if failed:
        axes.plot(
            *(failed, np.full(len(failed), 0.02), "x"),
            color=COLOURS["FAILED"],
            markersize=5,
            transform=axes.get_xaxis_transform(),
            label=f"failed ({len(failed)})",
        )
    if len(pairs):
        best = (np.minimum if mode == "min" else np.maximum).accumulate(shown)
        axes.step(
            np.append(places, max(len(trials), places[-1])),
            np.append(best, best[-1]),
            where="post",
            color=INK,
            linewidth=1.6,
            label="best so far",
            zorder=3,
        )
    axes.margins(y=0.1)
    if not pairs:
        axes.set_yticks([])
    if (winner := best_trial(summary)) is not None and winner["id"] in number:
        _mark_winner(axes, winner, number[winner["id"]], value_of(winner, metric, first=True))
    axes.set_xlim(0.5 - 0.01 * len(trials), max(1, len(trials)) + 0.5 + 0.01 * len(trials))
    whole_numbers(axes)
    better = "lower" if mode == "min" else "higher"
    dress(
        axes, "Best so far", "trial, in the order in which they were made", f"{metric} ({better} is better)"
    )
    if pairs or failed:
        legend_below(figure, axes)
    else:
        say(axes, "no trial has a score")
    save(figure, path)


def learning_curves_picture(
    summary: Summary,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    *,
    x_label: str = "epoch",
) -> None:
    """The first metric of every trial while it trained, the best trial's on top. `curves` has `(epoch, value)` pairs by
    trial."""
    metric, mode = objectives(summary)[0]
    figure, axes = figure_of(7.6, 4.4)
    found = {trial: finite(points) for trial, points in curves.items()}
    lines = [
        (trial, found[trial["id"]])
        for trial in summary["trials"]
        if trial["id"] in found and len(found[trial["id"]])
    ]
    values = np.concatenate([line[:, 1] for _, line in lines]) if lines else np.empty(0)
    scale_scores(axes, values, mode)
    opacity = float(np.clip(25 / max(1, len(lines)), 0.12, 0.75))
    best_id = summary.get("best")
    longest = max((len(line) for _, line in lines), default=0)
    for state in ("FAILED", "STOPPED", "PRUNED", "COMPLETED", "OTHER"):
        mine = [
            line
            for trial, line in lines
            if (trial["state"] if trial["state"] in COLOURS else "OTHER") == state and trial["id"] != best_id
        ]
        label = f"{state.lower() if state != 'OTHER' else 'not finished'} ({len(mine)})"
        for index, line in enumerate(mine):
            axes.plot(
                *line.T,
                color=COLOURS.get(state, OTHER),
                alpha=opacity,
                linewidth=1.1,
                marker="o" if len(line) == 1 or longest <= 12 else None,
                markersize=2.6,
                label=None if index else label,
            )
    for trial, line in lines:
        if trial["id"] == best_id:
            axes.plot(
                *line.T,
                color=BEST,
                linewidth=2.4,
                marker="o" if longest <= 30 else None,
                markersize=4,
                zorder=4,
                label=f"best: {best_id}",
            )
    whole_numbers(axes)
    better = "lower" if mode == "min" else "higher"
    dress(axes, "Learning curves", x_label, f"{metric} ({better} is better)")
    if lines:
        legend_below(figure, axes)
    else:
        say(axes, "no trial reported a value")
    save(figure, path)


def importance_picture(summary: Summary, found: Importance | None, path: Path) -> None:
    """How much each parameter matters, and by what method that was found; says so where it cannot be told."""
    metric, _ = objectives(summary)[0]
    title = f"Importance of the parameters for {metric}"
    if found is None:
        figure, axes = figure_of(7.6, 2.2)
        axes.set_axis_off()
        axes.set_title(title, fontsize=12, pad=10)
        many = len(scored(summary))
        reason = (
            f"needs at least {FEWEST_TRIALS} trials with a score; this search has {many}"
            if many < FEWEST_TRIALS
            else "no parameter differs between the trials"
        )
        say(axes, reason)
        save(figure, path)
        return
    names = short_names(found.names)
    count = min(len(found.names), _MOST_BARS)
    figure, axes = figure_of(7.6, 1.7 + 0.36 * count)
    rows = np.arange(count)
    means = np.array(found.means[:count])
    deviations = np.array(found.deviations[:count])
    axes.barh(rows, np.maximum(means, 0), color=COLOURS["COMPLETED"], height=0.62)
    axes.errorbar(
        np.maximum(means, 0), rows, xerr=deviations, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5
    )
    for row, mean, deviation in zip(rows, means, deviations, strict=True):
        axes.annotate(
            f"{max(mean, 0):.2f}",
            (max(mean, 0) + deviation, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    axes.set_yticks(rows, [_short(names[name]) for name in found.names[:count]])
    axes.invert_yaxis()
    axes.set_xlim(0, max(0.05, float((np.maximum(means, 0) + deviations).max()) * 1.15))
    more = f", the first {count} of {len(found.names)}" if len(found.names) > count else ""
    dress(axes, title + more, "fall in R² when the parameter is shuffled", "")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    note = found.method
    if found.r2 < 0.1:
        note += " It predicts next to nothing: these figures mean little."
    figure.supxlabel(wrapped(note, 105), fontsize=8, color=SOFT, ha="center")
    save(figure, path)


def _mark_winner(axes: Axes, winner: Trial, place: int, score: float | None) -> None:
    if score is not None:
        axes.plot(
            *(place, score, "o"),
            markersize=10,
            fillstyle="none",
            markeredgewidth=2,
            color=BEST,
            zorder=5,
            label=f"best: {winner['id']}, {score:.4g}",
        )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"…{text[-_LONGEST + 1 :]}"
