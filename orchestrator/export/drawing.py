"""What the pictures of a search have in common: colours, figures, the scale of the scores.

Drawn without pyplot, so that nothing global changes and no display is needed.
Imports: numpy; matplotlib inside functions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"COMPLETED": "#4c78a8", "PRUNED": "#f2a65a", "STOPPED": "#9aa0a6", "FAILED": "#6b7280"}
"""Of trials, by how they ended; those that have not are of the colour OTHER."""
OTHER, BEST, INK, SOFT = "#b6bec9", "#e45756", "#1f2933", "#6b7280"
DPI = 120
_GRID = "#e5e7eb"
_HUGE = 1e250
_LEAST_DECADES = 2
"""On a logarithmic axis nothing lies far off that is nearer than four times this to the middle half of all."""


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    figure, (axes,) = figures_of(width, height, 1, 1)
    return figure, axes


def figures_of(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches that draws with Agg, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel())


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title, labels, and a grid behind what is drawn."""
    if title:
        axes.set_title(title, fontsize=12, pad=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write the picture without the room around it."""
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.15)


def say(axes: Axes, text: str) -> None:
    """A line in the middle, where there is nothing to draw."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=10.5)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Below the axes: it shall cover no point."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def whole_numbers(axes: Axes) -> None:
    """Ticks below at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def dots(colour: str, many: int) -> dict[str, Any]:
    """Dots that can be told apart where there are many."""
    return {
        "color": colour,
        "markersize": float(np.clip(9 - 1.2 * np.log10(max(1, many)) * 1.6, 3, 6.5)),
        "alpha": 0.85 if many <= 200 else 0.55,
        "markeredgewidth": 0,
        "clip_on": False,
    }


def scale_scores(axes: Axes, values: np.ndarray[Any, Any], mode: str) -> np.ndarray[Any, Any]:
    """Choose the scale of the scores: logarithmic where they span orders of magnitude. Those that lie far off on the
    bad side shall not squeeze the others: they are drawn on the edge, as is told there. Returns what to draw."""
    if len(values) == 0:
        return values
    if mode == "min":
        values = np.minimum(values, _HUGE / 10)
    log = wants_log(values)
    if log:
        axes.set_yscale("log")
    scaled = np.log(values) if log else values
    low, high = np.quantile(scaled, [0.25, 0.75])
    reach = 4 * max(high - low, _LEAST_DECADES * np.log(10) if log else 0.0)
    bad = scaled > high + reach if mode == "min" else scaled < low - reach
    if not bad.any() or reach == 0 or bad.mean() > 0.2:
        return values
    near = scaled[~bad]
    margin = 0.08 * float(np.ptp(near) or reach)
    bounds = np.array([near.min() - margin, near.max() + margin])
    bounds = np.exp(bounds) if log else bounds
    axes.set_ylim(*bounds)
    limit = bounds[1] if mode == "min" else bounds[0]
    axes.annotate(
        f"{bad.sum()} {'point' if bad.sum() == 1 else 'points'} beyond {limit:.3g}",
        (1.0, 1.0 if mode == "min" else 0.0),
        xycoords="axes fraction",
        xytext=(-4, -14 if mode == "min" else 8),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=SOFT,
    )
    clipped: np.ndarray[Any, Any] = np.clip(values, *bounds)
    return clipped


def wants_log(values: np.ndarray[Any, Any]) -> bool:
    """Whether values span so much that a logarithmic axis shows more; not where its margins would leave the floats."""
    return bool(
        len(values) and values.min() > 0 and values.max() / values.min() > 20 and values.max() < _HUGE
    )


def finite(points: Iterable[tuple[float, float]]) -> np.ndarray[Any, Any]:
    """The points of finite numbers in the order of their first figure, shape (n, 2)."""
    array = np.asarray(list(points), dtype=np.float64).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    ordered: np.ndarray[Any, Any] = array[np.argsort(array[:, 0], kind="stable")]
    return ordered


def wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))
