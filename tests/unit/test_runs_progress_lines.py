from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import Cause
from orchestrator.monitor.progress_lines import (
    format_duration,
    format_progress,
    format_verdict,
    parse_progress,
    parse_verdict,
)
from orchestrator.records import Progress, Status, Verdict

count = st.integers(0, 10**9)
loss = st.none() | st.floats(width=32)
progresses = st.builds(
    Progress,
    count,
    count,
    count,
    count,
    samples_per_s=st.floats(0, 1e9),
    train_loss=loss,
    val_loss=loss,
    eta_s=st.none() | st.floats(0, 1e7),
    phase=st.sampled_from(["starting", "training", "evaluating", "saving", "finishing"]),
)
words = st.lists(st.text("abcXYZ0189,;:=()'é", min_size=1), min_size=1).map(" ".join)
verdicts = st.builds(
    Verdict,
    status=st.sampled_from(get_args(Status)),
    exit_code=st.integers(0, 255),
    reason=words,
    cause=st.none() | st.sampled_from(get_args(Cause)),
    rank=st.none() | st.integers(0, 4096),
    mend=st.just("") | words,
    metrics=st.dictionaries(
        st.from_regex(r"(best|test)/[a-z_]{1,8}", fullmatch=True), st.floats(width=32), max_size=3
    ),
)


def close(one: float | None, other: float | None, *, rel: float, abs_: float = 0.0) -> bool:
    if one is None or other is None:
        return one is other
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=rel, abs_tol=abs_)


@given(progresses)
def test_progress_survives_the_log(progress: Progress) -> None:
    line = f"(driver pid=77) 2026-11-21 10:00:00 INFO orchestrator: {format_progress(progress)} \x1b[0m"
    again = parse_progress(line)
    assert again is not None
    assert (again.epoch, again.max_epochs) == (progress.epoch, progress.max_epochs)
    assert (again.step, again.max_steps, again.phase) == (progress.step, progress.max_steps, progress.phase)
    assert close(again.train_loss, progress.train_loss, rel=1e-3)
    assert close(again.val_loss, progress.val_loss, rel=1e-3)
    assert close(again.samples_per_s, progress.samples_per_s, rel=1e-2)
    assert close(again.eta_s, progress.eta_s, rel=0.03, abs_=0.5)


@given(verdicts)
def test_a_verdict_survives_the_log(verdict: Verdict) -> None:
    line = format_verdict(verdict, "digits-3")
    assert "\n" not in line
    again = parse_verdict(f"verdict: FAILED other-1 (exit 9): an earlier one\nx {line}\nbye\n")
    assert again is not None
    for name in ("status", "exit_code", "cause", "rank", "reason", "mend"):
        assert getattr(again, name) == getattr(verdict, name)
    assert again.metrics.keys() == verdict.metrics.keys()
    assert all(close(again.metrics[key], verdict.metrics[key], rel=1e-5) for key in verdict.metrics)


def test_lines_read_well() -> None:
    progress = Progress(3, 20, 120, 400, 3120.4, 0.1234567, 0.11, 12.2)
    expected = "epoch 3/20 · step 120/400 · 3,120 samples/s · train 0.1235 · val 0.11 · eta 12s"
    assert format_progress(progress) == expected
    verdict = Verdict("FAILED", 1, "no\n  memory.", "out of memory", 2, "buy some", {"test/loss": 0.5})
    expected = (
        "verdict: FAILED a-1 (exit 1, out of memory, rank 2): no memory. To mend: buy some [test/loss=0.5]"
    )
    assert format_verdict(verdict, "a-1") == expected
    parsed = parse_verdict("verdict: SUCCEEDED a-1 (exit 0): odd [x=y]")
    assert parsed is not None
    assert parsed.reason == "odd [x=y]"


@pytest.mark.parametrize("line", ["", "epoch 3 of 20", "verdict: MAYBE x (exit 1): y", "verdict: FAILED"])
def test_other_lines_are_none(line: str) -> None:
    assert parse_progress(line) is None
    assert parse_verdict(line) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (86390, "1d00h"),
        (90000, "1d01h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
