from __future__ import annotations

import contextlib
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec import load_spec
from orchestrator.units import parse_duration, parse_size
from tests.unit.spec_helpers import minimal


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90), (0, 0), (1.5, 1.5), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m", 5400),
        ("500ms", 0.5), ("1.5h", 5400), (" 5 min ", 300), ("1D", 86400), ("2d", 172800),
    ],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "90", "", "m", "-5s", "10 parsecs", "5s!", "1h-30m", "9" * 400 + "d",
        True, None, [], -1, math.nan, math.inf, 10**400,
    ],
)  # fmt: skip
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (1024, 1024), ("1024", 1024), ("1kB", 1000), ("1KiB", 1024), ("64GB", 64 * 10**9),
        ("1.5TB", 15 * 10**11), ("2tib", 2 * 2**40), ("7b", 7), (0, 0), ("64 GiB", 64 * 2**30),
    ],
)  # fmt: skip
def test_sizes(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1G", "1.2.3GB", 1.5, True, None, -1, 2**63, "9" * 400 + "TB", "9TBs"]
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@given(st.text() | st.integers() | st.floats())
def test_units_never_raise_anything_else(value: object) -> None:
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ValueError):
            assert parse(value) >= 0


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "torchvision/resnet18", "my_model:Net", "a.b:C.d"])
def test_models_that_may_be_named(name: str) -> None:
    assert load_spec(minimal(model={"name": name})).spec.model.name == name


def test_what_one_worker_takes() -> None:
    def per_worker(**resources: object) -> dict[str, float]:
        return load_spec(minimal(resources=resources)).spec.resources.per_worker()

    assert per_worker() == {"CPU": 1.0}
    assert per_worker(use_gpu=True) == {"CPU": 1.0, "GPU": 1.0}
    assert per_worker(use_gpu=True, resources_per_worker={"CPU": 4, "GPU": 0.5}) == {"CPU": 4.0, "GPU": 0.5}


def test_a_spec_never_changes() -> None:
    spec = load_spec(minimal()).spec
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 3  # type: ignore[misc]


def test_importing_the_spec_loads_nothing_heavy() -> None:
    code = """
import sys, orchestrator.spec as spec
source = {'kind': 'sklearn', 'name': 'digits'}
spec.load_spec({'name': 'x', 'data': {'source': source, 'target': 'y'}, 'model': {'name': 'cnn'}})
print(sorted({'torch', 'ray', 'mlflow', 'numpy', 'pyarrow', 'pandas', 'typer', 'rich'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
