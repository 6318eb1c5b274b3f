"""Parallel coordinates of a search: a line for each trial through its parameters to its score, as a PNG file.

`summary` is the content of `search/summary.json`. Imports: numpy; matplotlib inside functions; the table of the search.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.export.drawing import BEST, INK, SOFT, figure_of, save, say, wants_log, wrapped
from orchestrator.export.search_table import (
    Summary,
    Trial,
    objectives,
    paths,
    scored,
    short_names,
    text_of,
    value_of,
    varying,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = "viridis_r"
_MOST_AXES = 11
_MOST_WORDS = 14
_LONGEST = 16
_NONE_AT = -0.12
"""Where lines pass an axis whose parameter their trial does not have."""
_SMOOTH = 24


@dataclass(frozen=True)
class _Axis:
    """A parameter as heights between 0 and 1, NaN for trials without it, and its ticks."""

    title: str
    heights: np.ndarray[Any, Any]
    ticks: list[tuple[float, str]]


def parallel_coordinates_picture(
    summary: Summary,
    path: Path,
    *,
    log_scale: Collection[str] = (),
    categories: Mapping[str, Sequence[Any]] | None = None,
    order: Sequence[str] = (),
) -> None:
    """Every trial with a score as a line through its parameters, coloured by its rank; the best one, or with several
    objectives the Pareto front, on top.

    Parameters of `log_scale` have logarithmic axes. Those of `categories`, which has their values in order, have a mark
    for each value; so has what is no number. Those of `order` come first; beyond eleven the rest is left out, and told
    so. Parameters that never vary are named below.
    """
    told = objectives(summary)
    pairs = scored(summary)
    trials, scores = [trial for trial, _ in pairs], np.array([score for _, score in pairs])
    known, names = paths(summary), short_names(paths(summary))
    moving = [name for name in known if varying(trials, name)] if len(trials) > 1 else list(known)
    moving = [*(name for name in order if name in moving), *(name for name in moving if name not in order)]
    figure, axes = figure_of(
        *((max(6.4, 3.3 + 1.45 * min(len(moving), _MOST_AXES)), 5.0) if trials else (7.6, 2.2))
    )
    axes.set_yticks([])
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"Parameters and {told[0][0] if len(told) == 1 else 'objectives'} of {_trials(len(trials))}",
        fontsize=12,
        pad=14,
        loc="left",
    )
    if trials:
        listed = categories or {}
        upright = [
            *(
                _axis(trials, name, names[name], log=name in log_scale, listed=listed.get(name))
                for name in moving[:_MOST_AXES]
            ),
            *(_score_axis(trials, *objective, first=not place) for place, objective in enumerate(told)),
        ]
        worst_first = np.argsort(scores if told[0][1] == "max" else -scores, kind="stable")
        _draw_lines(
            axes, upright, trials, worst_first, _on_top(summary, trials, worst_first), several=len(told) > 1
        )
        _draw_axes(axes, upright, num_right=len(told))
        if len(trials) > 2:
            _draw_bar(figure, axes, "rank" if len(told) == 1 else f"rank by {told[0][0]}")
    else:
        say(axes, "no trial has a score")
    constant = [name for name in known if name not in moving]
    if notes := _notes(summary, trials, constant, moving[_MOST_AXES:], names):
        figure.supxlabel(notes, fontsize=8, color=SOFT, x=0.02, ha="left")
    save(figure, path)


def _on_top(summary: Summary, trials: Sequence[Trial], worst_first: np.ndarray[Any, Any]) -> set[str]:
    """The ids of the trials that are drawn on top: the best one, or the Pareto front."""
    if len(objectives(summary)) > 1:
        return set(summary.get("pareto") or ())
    known = {trial["id"] for trial in trials}
    return {summary["best"] if summary.get("best") in known else trials[worst_first[-1]]["id"]}


def _draw_lines(
    axes: Axes,
    upright: Sequence[_Axis],
    trials: Sequence[Trial],
    worst_first: np.ndarray[Any, Any],
    chosen: set[str],
    *,
    several: bool,
) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    heights = np.column_stack([axis.heights for axis in upright])
    lines = _curves(np.where(np.isnan(heights), _NONE_AT, heights))
    rank = np.empty(len(trials))
    rank[worst_first] = np.linspace(0, 1, len(trials)) if len(trials) > 1 else [1.0]
    opacity = float(np.clip(30 / len(trials), 0.16, 0.8))
    top = [index for index in worst_first if trials[index]["id"] in chosen]
    rest = [index for index in worst_first if trials[index]["id"] not in chosen]
    colours = colormaps[_COLOURS]
    axes.add_collection(
        LineCollection(
            [lines[index] for index in rest],
            colors=[(*colours(0.06 + 0.9 * rank[index])[:3], opacity) for index in rest],
            linewidths=float(np.clip(3 - 0.7 * math.log10(len(trials)), 0.9, 2)),
        )
    )
    width = 1.5 if several else 2.6
    axes.add_collection(
        LineCollection([lines[index] for index in top], colors=[BEST], linewidths=width, zorder=4)
    )
    label = f"Pareto front: {_trials(len(top))}" if several else f"best: {trials[top[0]]['id']}"
    axes.plot([], [], color=BEST, linewidth=width, label=label)
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.08), borderaxespad=0.0)


def _draw_axes(axes: Axes, upright: Sequence[_Axis], *, num_right: int) -> None:
    """The parameters' axes, with their ticks on the left, and those of the objectives, with ticks on the right."""
    lacking = False
    for x, axis in enumerate(upright):
        right = x >= len(upright) - num_right
        axes.plot([x, x], [0, 1], color=INK, linewidth=1.1, zorder=5)
        for height, text in axis.ticks:
            axes.plot([x - 0.02, x], [height, height], color=INK, linewidth=1, zorder=5)
            axes.text(
                *(x + 0.03 if right else x - 0.035, height, text),
                ha="left" if right else "right",
                va="center",
                fontsize=8,
                color=INK,
                zorder=6,
                bbox={"facecolor": "white", "alpha": 0.72, "edgecolor": "none", "pad": 0.6},
            )
        if np.isnan(axis.heights).any():
            lacking = True
            axes.plot(x, _NONE_AT, "o", color="white", markeredgecolor=INK, markersize=5, zorder=6)
            axes.text(x, _NONE_AT - 0.05, "not used", ha="center", va="top", fontsize=8, color=SOFT)
    axes.set_xticks(range(len(upright)), [_titled(axis.title) for axis in upright], fontsize=9, color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=6)
    axes.set_xlim(-0.35, len(upright) - 1 + 0.35)
    axes.set_ylim(_NONE_AT - 0.12 if lacking else -0.03, 1.03)


def _draw_bar(figure: Figure, axes: Axes, label: str) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=_COLOURS), ax=axes, fraction=0.02, pad=0.02, aspect=32)
    bar.set_ticks([0.03, 0.97], labels=["worst", "best"])
    bar.ax.tick_params(length=0, labelsize=8)
    bar.set_label(label, fontsize=9, labelpad=-18)
    bar.outline.set_visible(False)


def _notes(
    summary: Summary,
    trials: Sequence[Trial],
    constant: Sequence[str],
    left_out: Sequence[str],
    names: dict[str, str],
) -> str:
    told = []
    constant = [name for name in constant if trials and trials[0]["params"].get(name) is not None]
    if constant:
        values = ", ".join(
            f"{names[name]} = {text_of(trials[0]['params'].get(name))}" for name in constant[:8]
        )
        told.append(f"The same in all trials: {values}{', …' if len(constant) > 8 else ''}.")
    if left_out:
        told.append(f"Left out: {', '.join(names[name] for name in left_out)}.")
    if without := len(summary["trials"]) - len(trials):
        told.append(f"{without} without a score {'is' if without == 1 else 'are'} not drawn.")
    return wrapped(" ".join(told), 130)


def _axis(
    trials: Sequence[Trial], name: str, title: str, *, log: bool, listed: Sequence[Any] | None
) -> _Axis:
    values = [trial["params"].get(name) for trial in trials]
    given = [value for value in values if value is not None]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
    if given and numbers and not (listed is not None and len(set(given)) <= _MOST_WORDS):
        column = np.array([math.nan if value is None else float(value) for value in values])
        return _numbers(title, column, log=log)
    return _words(title, values, sorted(set(given)) if numbers else listed or ())


def _score_axis(trials: Sequence[Trial], metric: str, mode: str, *, first: bool) -> _Axis:
    values = [value_of(trial, metric, first=first) for trial in trials]
    column = np.array([math.nan if value is None else value for value in values])
    return _numbers(metric, column, log=wants_log(column[np.isfinite(column)]), far=mode)


def _words(title: str, values: Sequence[Any], order: Sequence[Any]) -> _Axis:
    """Each value has its height, from below in this order; the trials of one lie a little apart, so that their number
    can be seen."""
    found = {json.dumps(value, default=str): value for value in values if value is not None}
    first = [json.dumps(value, default=str) for value in order]
    texts = [*(text for text in first if text in found), *sorted(found.keys() - set(first))]
    heights = {text: (index + 0.5) / len(texts) for index, text in enumerate(texts)}
    spread = min(0.12, 0.3 / max(1, len(texts))) * min(1.0, (len(values) - 1) / 20)
    apart = spread * (np.modf(np.arange(len(values)) * 0.618033988749895)[0] - 0.5)
    column = np.array(
        [
            math.nan if value is None else heights[json.dumps(value, default=str)] + shift
            for value, shift in zip(values, apart, strict=True)
        ]
    )
    thinned = texts[:: -(-len(texts) // _MOST_WORDS)] if texts else []
    return _Axis(title, column, [(heights[text], _short(text_of(found[text]))) for text in thinned])


def _numbers(title: str, column: np.ndarray[Any, Any], *, log: bool, far: str = "") -> _Axis:
    """Numbers between the least and the greatest; `far` (`min` or `max`) keeps a few that lie far off on the bad side
    from squeezing the others."""
    there = column[np.isfinite(column)]
    if not len(there):
        return _Axis(title, column, [])
    log = log and bool(there.min() > 0)
    low, high = float(there.min()), float(there.max())
    if far and not log and len(there) > 4:
        first, third = np.quantile(there, [0.25, 0.75])
        reach = 4 * (third - first)
        if reach:
            high = min(high, float(third + reach)) if far == "min" else high
            low = max(low, float(first - reach)) if far == "max" else low
    if low == high:
        return _Axis(title, np.where(np.isfinite(column), 0.5, math.nan), [(0.5, text_of(low))])

    def height(value: Any) -> Any:
        if log:
            return (np.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    with np.errstate(invalid="ignore"):
        heights = np.clip(height(column), 0, 1)
    ticks = _decades(low, high) if log else _steps(low, high)
    return _Axis(title, heights, [(float(height(tick)), _figure_text(tick)) for tick in ticks])


def _steps(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(
        nbins=6, steps=[1, 2, 2.5, 5, 10], integer=low.is_integer() and high.is_integer()
    ).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def _decades(low: float, high: float) -> list[float]:
    """Round values between two bounds, as far apart as can be read."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
        found = [
            value
            for power in range(first, last + 1)
            for f in factors
            if low <= (value := f * 10.0**power) <= high
        ]
        if len(found) >= 3:
            return found[:: -(-len(found) // 9)]
    return _steps(low, high)


def _curves(heights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Smooth lines through the heights, shape (trials, axes) → (trials, points, 2), level at each axis."""
    count = heights.shape[1]
    if count == 1:
        return np.stack([np.tile([-0.1, 0.1], (len(heights), 1)), np.repeat(heights, 2, axis=1)], axis=2)
    share = np.linspace(0, 1, _SMOOTH, endpoint=False)
    ease = share * share * (3 - 2 * share)
    parts = heights[:, :-1, None] + (heights[:, 1:] - heights[:, :-1])[:, :, None] * ease
    ys = np.concatenate([parts.reshape(len(heights), -1), heights[:, -1:]], axis=1)
    xs = np.append((np.arange(count - 1)[:, None] + share).ravel(), count - 1)
    return np.stack([np.tile(xs, (len(heights), 1)), ys], axis=2)


def _trials(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'}"


def _figure_text(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:.4g}"


def _titled(title: str) -> str:
    """In two lines where it is long: broken behind a dot or an underscore near its middle."""
    if len(title) <= _LONGEST:
        return title
    breaks = [index + 1 for index, letter in enumerate(title[:-1]) if letter in "._"]
    if not breaks:
        return _short(title)
    middle = min(breaks, key=lambda index: abs(index - len(title) / 2))
    return f"{_short(title[:middle])}\n{_short(title[middle:])}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
