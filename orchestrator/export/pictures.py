"""Pictures of a finished run, as PNG files.

Drawn without pyplot, so that nothing global changes and no display is needed.
Imports: numpy; matplotlib inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
_MOST_LABELS = 40  # beyond it ticks and counts cannot be read, and are left out or thinned
_MOST_COUNTS = 25
_LONGEST_LABEL = 18
_TRAIN, _VAL, _GUIDE = "#4c78a8", "#e45756", "#9aa0a6"


def confusion_matrix_picture(
    matrix: Sequence[Sequence[int]],
    labels: Sequence[object],
    path: str | Path,
    *,
    title: str = "Confusion matrix",
) -> None:
    """Rows are true classes, columns predicted ones: coloured by the share of the row, counts written in.

    `matrix[i][j]` counts samples of class i predicted as j. With many classes, counts and some
    labels are left out.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    classes = len(counts)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = float(np.clip(2.6 + 0.48 * classes, 4.4, 13.0))
    figure, axes = _figure(side + 0.8, side)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    names = [_short(label) for label in labels]
    ticks = range(0, classes, -(-classes // _MOST_LABELS))
    turned = max(map(len, names), default=0) > 3
    axes.set_xticks(
        ticks, [names[i] for i in ticks], rotation=45 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_yticks(ticks, [names[i] for i in ticks])
    axes.tick_params(length=0)
    if classes <= _MOST_COUNTS:
        size = float(np.clip(13 - 0.3 * classes, 6.5, 11))
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else "#1f2933"
            axes.text(
                column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=colour
            )
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    right = int(np.trace(counts))
    total = int(counts.sum())
    share = f": {right} of {total} right ({right / total:.1%})" if total else ""
    axes.set_title(f"{title}{share}", fontsize=12, pad=12)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format=lambda value, _: f"{value:.0%}")
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", pad_inches=0.15)


def loss_curves_picture(
    history: Mapping[str, Sequence[tuple[int, float]]], path: str | Path, *, title: str = "Loss"
) -> None:
    """Training and validation loss over optimizer steps, the best validation marked.

    `history` has `(step, loss)` pairs under `train` and `val`; either may be empty or missing.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(7.6, 4.4)
    train, val = _finite(history.get("train", ())), _finite(history.get("val", ()))
    if len(train):
        many = len(train) > 60
        axes.plot(
            *train.T, color=_TRAIN, linewidth=1, alpha=0.3 if many else 1, label=None if many else "training"
        )
        if many:
            axes.plot(*_smoothed(train).T, color=_TRAIN, linewidth=1.8, label="training (smoothed)")
    if len(val):
        axes.plot(*val.T, color=_VAL, linewidth=1.8, marker="o", markersize=3.5, label="validation")
        step, loss = val[np.argmin(val[:, 1])]
        axes.plot(
            step,
            loss,
            "o",
            markersize=10,
            fillstyle="none",
            color=_VAL,
            label=f"best {loss:.4g} at step {step:.0f}",
        )
    losses = np.concatenate([part[:, 1] for part in (train, val)])
    if len(losses) and losses.min() > 0 and losses.max() / losses.min() > 20:
        axes.set_yscale("log")
    if len(losses):
        axes.legend(frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _dress(axes, title, "optimizer step", "loss")
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", pad_inches=0.15)


def regression_picture(
    predicted: Sequence[float],
    actual: Sequence[float],
    path: str | Path,
    *,
    title: str = "Predicted and actual",
) -> None:
    """Predicted over actual values, with the line on which both are equal."""
    pairs = _finite(list(zip(actual, predicted, strict=True)))
    figure, axes = _figure(5.6, 5.2)
    if len(pairs):
        low, high = float(pairs.min()), float(pairs.max())
        margin = 0.04 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color=_GUIDE, linewidth=1.2, linestyle="--", label="equal")
        crowd = len(pairs)
        axes.scatter(
            pairs[:, 0],
            pairs[:, 1],
            s=float(np.clip(4000 / crowd, 4, 28)),
            alpha=0.65 if crowd < 1000 else 0.25,
            color=_TRAIN,
            linewidths=0,
        )
        rmse = float(np.sqrt(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2)))
        title = f"{title}: RMSE {rmse:.4g} over {crowd} rows"
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.legend(frameon=False, loc="upper left")
    axes.set_aspect("equal")
    _dress(axes, title, "actual", "predicted")
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", pad_inches=0.15)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches that draws with Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=12, pad=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _finite(pairs: Sequence[tuple[Any, Any]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The pairs of finite numbers, shape (n, 2)."""
    array = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(axis=1)]


def _smoothed(points: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Means over a window of a twentieth of the points, each at its middle step; fewer at the ends."""
    half = max(1, len(points) // 40)
    sums = np.concatenate([[0.0], np.cumsum(points[:, 1])])
    here = np.arange(len(points))
    start, stop = np.maximum(here - half, 0), np.minimum(here + half + 1, len(points))
    return np.column_stack([points[:, 0], (sums[stop] - sums[start]) / (stop - start)])


def _short(label: object) -> str:
    text = str(label)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
