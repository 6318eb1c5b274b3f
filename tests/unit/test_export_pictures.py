"""Pictures are drawn for every size of matrix and history, and leave matplotlib's global state alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.export.pictures import confusion_matrix_picture, loss_curves_picture, regression_picture


def colours(path: Path) -> int:
    """How many colours a picture has: one where nothing was drawn."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 300
        return len(np.unique(np.asarray(image.convert("RGB")) @ np.array([65536, 256, 1])))


def matrix(classes: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return (np.diag(random.integers(20, 90, classes)) + random.integers(0, 4, (classes, classes))).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("classes", [2, 10, 60])
def test_confusion_matrix(classes: int, tmp_path: Path) -> None:
    labels = [f"a class with a long name {i}" for i in range(classes)]
    confusion_matrix_picture(matrix(classes), labels, tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 20


def test_confusion_matrix_of_classes_without_samples(tmp_path: Path) -> None:
    confusion_matrix_picture([[0, 0], [0, 0]], [0, 1], tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 1


def test_loss_curves(tmp_path: Path) -> None:
    steps = np.arange(400)
    train = [(int(step), float(2 * np.exp(-step / 60) + 0.01)) for step in steps]
    val = [(int(step), float(2 * np.exp(-step / 70) + 0.03)) for step in steps[::40]]
    loss_curves_picture({"train": train, "val": val}, tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 20
    loss_curves_picture({"train": train[:5]}, tmp_path / "b.png")
    assert colours(tmp_path / "b.png") > 1
    loss_curves_picture({"val": [(1, float("nan"))]}, tmp_path / "c.png")
    assert colours(tmp_path / "c.png") > 1


@pytest.mark.parametrize("rows", [0, 1, 60, 5000])
def test_regression(rows: int, tmp_path: Path) -> None:
    actual = np.random.default_rng(0).normal(150, 60, rows)
    predicted = actual + np.random.default_rng(1).normal(0, 20, rows)
    regression_picture(predicted.tolist(), actual.tolist(), tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 1


def test_pyplot_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from orchestrator.export.pictures import *; "
        f"confusion_matrix_picture([[1, 0], [0, 1]], [0, 1], {str(tmp_path / 'a.png')!r}); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[2])
