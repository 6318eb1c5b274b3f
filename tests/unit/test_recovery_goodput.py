"""The ledger against runs whose times were worked out by hand, and against what must hold for any run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import Cause
from orchestrator.records import Progress
from orchestrator.recovery.goodput import Ledger

PARTS = ("step", "startup", "checkpoint_stall", "wasted", "recovery", "other")


def at(step: int, seconds: float, *, started: int = 0, saved: int = 0, stall_s: float = 0.0) -> Progress:
    return Progress(
        1, 9, step, 1000, step_seconds=seconds, stall_s=stall_s, saved_step=saved, started_step=started
    )


def parts(figures: dict[str, float]) -> dict[str, float]:
    return {name: figures[f"goodput/{name}_seconds"] for name in PARTS}


def later_driver(ledger: Ledger, ended_s: float, *, began_s: float, time_s: float) -> Ledger:
    """A ledger that goes on where another one was written for the last time."""
    return Ledger(json.loads(json.dumps(ledger.to_dict(ended_s))), began_s=began_s, time_s=time_s)


def killed_once() -> Ledger:
    """Start 6 s; 50 steps in 20 s, 40 of them saved, stall 2 s, other 2 s; fault at 130, the first step at 139.5."""
    ledger = Ledger(began_s=100.0, time_s=1e9)
    ledger.attempt_began(1, 105.0, world_size=2)
    ledger.progress(Progress(0, 9, 0, 0, phase="starting"), 105.5)
    ledger.progress(at(10, 4.0), 110.0)
    ledger.progress(at(50, 20.0, saved=40, stall_s=2.0), 130.0)
    ledger.attempt_ended("hardware", 133.0, how="worker killed")
    ledger.attempt_began(2, 134.0, world_size=1)
    ledger.progress(at(41, 0.5, started=40, saved=40), 140.0)
    ledger.progress(at(80, 20.0, started=40, saved=80, stall_s=0.5), 160.0)
    return ledger


def test_a_run_that_was_killed_once() -> None:
    ledger = killed_once()
    ledger.progress(Progress(1, 9, 80, 1000, phase="finishing"), 161.0)
    ledger.attempt_ended(None, 170.0, how="completed")
    figures = ledger.figures(171.0)
    assert parts(figures) == pytest.approx(
        {"startup": 6, "step": 36, "wasted": 4, "checkpoint_stall": 2.5, "recovery": 9.5, "other": 13}
    )
    assert figures["goodput/seconds"] == 71
    assert figures["goodput/share"] == pytest.approx(36 / 71)
    assert (figures["goodput/restarts"], figures["goodput/wasted_steps"]) == (1, 10)
    assert figures["goodput/recovery_median_seconds"] == figures["goodput/recovery_max_seconds"] == 9.5
    assert figures["goodput/lost_by/hardware"] == pytest.approx(13.5)
    assert ledger.summary(171.0) == "51%: 1 restart (worker killed), 10 steps repeated, 9.5 s to recover"
    first, second = ledger.attempts()
    assert (first["attempt"], first["world_size"], first["ended"], first["cause"]) == (
        1, 2, "worker killed", "hardware",
    )  # fmt: skip
    assert (first["from_step"], first["to_step"], first["repeated_steps"]) == (0, 50, 10)
    assert (second["from_step"], second["to_step"], second["repeated_steps"]) == (40, 80, 0)
    assert (first["seconds"], second["seconds"], second["ended"]) == (28.0, 36.0, "completed")


def test_a_quiet_run_has_nothing_to_tell() -> None:
    ledger = Ledger(began_s=0.0, time_s=1e9)
    ledger.attempt_began(1, 1.0)
    ledger.progress(at(100, 98.0, stall_s=0.5), 100.0)
    ledger.attempt_ended(None, 100.0)
    assert ledger.summary(100.0) == ""
    assert ledger.figures(100.0)["goodput/share"] == pytest.approx(0.98)


def test_a_long_stall_is_named() -> None:
    ledger = Ledger(began_s=0.0, time_s=1e9)
    ledger.attempt_began(1, 0.0)
    ledger.progress(at(100, 80.0, stall_s=20.0), 100.0)
    assert ledger.summary(100.0) == "80%: 20 s waiting for checkpoints"


def test_what_was_thought_saved_but_was_damaged_is_wasted() -> None:
    ledger = killed_once()
    ledger.attempt_ended("hardware", 160.0)
    assert ledger.figures(160.0)["goodput/wasted_steps"] == 10  # 80 steps were saved
    ledger.attempt_began(3, 160.0)
    ledger.progress(at(25, 1.0, started=20), 162.0)  # it found nothing better than step 20
    figures = ledger.figures(162.0)
    assert figures["goodput/wasted_steps"] == (50 - 20) + (80 - 40)
    assert figures["goodput/wasted_seconds"] == pytest.approx(20 * 30 / 50 + 20)


def test_without_another_attempt_what_was_saved_counts() -> None:
    ledger = Ledger(began_s=0.0, time_s=0.0)
    ledger.attempt_began(1, 0.0)
    ledger.progress(at(10, 10.0, saved=6), 10.0)
    assert ledger.figures(10.0)["goodput/wasted_steps"] == 0
    ledger.attempt_ended("data", 10.0)
    assert ledger.figures(10.0)["goodput/wasted_steps"] == 4
    assert ledger.figures(10.0)["goodput/restarts"] == 0


def test_failures_before_the_first_step_prolong_the_outage() -> None:
    ledger = Ledger(began_s=0.0, time_s=0.0)
    ledger.attempt_began(1, 0.0)
    ledger.progress(at(10, 10.0, saved=10), 10.0)
    ledger.attempt_ended("hardware", 12.0)
    ledger.attempt_began(2, 13.0)
    ledger.attempt_ended("control plane", 20.0, fault_s=18.0)
    ledger.attempt_began(3, 21.0)
    ledger.progress(at(11, 1.0, started=10), 30.0)
    figures = ledger.figures(30.0)
    assert figures["goodput/recovery_max_seconds"] == figures["goodput/recovery_seconds"] == 19
    assert figures["goodput/lost_by/hardware"] == 8
    assert figures["goodput/lost_by/control_plane"] == 11
    assert figures["goodput/restarts"] == 2


def test_a_known_time_of_the_fault_is_taken_where_it_is_possible() -> None:
    lost = []
    for fault_s in (None, 15.0, 5.0, 99.0):
        ledger = Ledger(began_s=0.0, time_s=0.0)
        ledger.attempt_began(1, 0.0)
        ledger.progress(at(10, 10.0, saved=10), 10.0)
        ledger.attempt_ended("hardware", 20.0, fault_s=fault_s)
        lost.append(ledger.figures(25.0)["goodput/recovery_seconds"])
    assert lost == [15, 10, 15, 5]


def test_a_resize_is_a_restart_but_no_fault() -> None:
    ledger = Ledger(began_s=0.0, time_s=0.0)
    ledger.attempt_began(1, 0.0, world_size=2)
    ledger.progress(at(10, 10.0, saved=10), 10.0)
    ledger.attempt_ended(None, 10.0, how="grew to 3 workers")
    ledger.attempt_began(2, 11.0, world_size=3)
    ledger.progress(at(20, 5.0, started=10), 17.0)
    assert ledger.summary(17.0) == "88%: 1 restart (grew to 3 workers), 2.0 s to recover"
    assert ledger.figures(17.0)["goodput/lost_by/resize"] == 2


def test_a_driver_that_was_killed_is_a_restart_and_its_absence_does_not_count() -> None:
    before = Ledger(began_s=50.0, time_s=1000.0)
    before.attempt_began(1, 50.0)
    before.progress(at(10, 8.0, saved=6), 60.0)
    ledger = later_driver(before, 62.0, began_s=3.0, time_s=1112.0)
    ledger.attempt_began(2, 5.0)
    ledger.progress(at(8, 2.0, started=6), 10.0)
    figures = ledger.figures(10.0)
    assert figures["goodput/seconds"] == 12 + 7
    assert figures["goodput/absent_seconds"] == 100
    assert figures["goodput/restarts"] == 1
    assert figures["goodput/wasted_steps"] == 4
    assert figures["goodput/recovery_max_seconds"] == 5  # of the new driver: what came before is not known
    assert ledger.attempts()[0]["ended"] == "driver lost"


def test_going_on_after_a_stop_is_another_start() -> None:
    before = Ledger(began_s=0.0, time_s=0.0)
    before.attempt_began(1, 0.0)
    before.progress(at(10, 10.0, saved=10), 10.0)
    before.attempt_ended(None, 11.0, how="stopped")
    ledger = later_driver(before, 12.0, began_s=0.0, time_s=12.0)
    ledger.attempt_began(2, 3.0)
    ledger.progress(at(20, 10.0, started=10), 15.0)
    figures = ledger.figures(15.0)
    assert (figures["goodput/restarts"], figures["goodput/startup_seconds"]) == (0, 5)
    assert figures["goodput/recovery_seconds"] == 0
    assert "goodput/absent_seconds" not in figures


def test_an_attempt_nobody_closed_is_lost_and_late_letters_are_too() -> None:
    ledger = Ledger(began_s=0.0, time_s=0.0)
    ledger.attempt_began(1, 0.0)
    ledger.progress(at(10, 10.0, saved=10), 10.0)
    ledger.attempt_began(2, 12.0)
    ledger.attempt_began(1, 13.0)
    ledger.attempt_ended("hardware", 14.0)
    ledger.progress(at(99, 99.0), 15.0)
    rows = ledger.attempts()
    assert [(row["attempt"], row["ended"], row["to_step"]) for row in rows] == [
        (1, "lost", 10),
        (2, "hardware", 0),
    ]


def test_a_run_so_short_that_only_its_end_was_heard() -> None:
    ledger = Ledger(began_s=0.0, time_s=0.0)
    ledger.attempt_began(1, 10.0)
    ledger.progress(replace(at(20, 0.5, stall_s=0.25, saved=20), phase="finishing"), 11.0)
    ledger.progress(Progress(1, 9, 20, 1000, phase="finishing"), 11.0)
    figures = ledger.figures(12.0)
    assert (figures["goodput/startup_seconds"], figures["goodput/step_seconds"]) == (10.25, 0.5)
    assert ledger.attempts()[0]["to_step"] == 20


def test_a_train_function_that_tells_steps_only() -> None:
    ledger = Ledger(began_s=0.0, time_s=0.0)
    ledger.attempt_began(1, 0.0)
    for now_s in range(10, 31):
        ledger.progress(Progress(1, 9, 2 * now_s, 1000), float(now_s))
    figures = ledger.figures(35.0)
    assert parts(figures) == pytest.approx(
        {"startup": 10, "step": 20, "wasted": 0, "checkpoint_stall": 0, "recovery": 0, "other": 5}
    )


@pytest.mark.parametrize(
    "earlier",
    [{}, {"drivers": None}, {"drivers": [3], "attempts": "x"}, {"attempts": [{"number": 1, "driver": 7}]}],
)
def test_a_ledger_that_cannot_be_read_is_begun_anew(earlier: dict[str, Any]) -> None:
    ledger = Ledger(earlier, began_s=0.0, time_s=0.0)
    assert ledger.attempts() == []
    assert ledger.figures(2.0)["goodput/startup_seconds"] == 2


amount = st.floats(0, 1e4, allow_subnormal=False)
events = st.one_of(
    st.tuples(st.just("began"), st.integers(1, 12), st.integers(0, 8)),
    st.tuples(
        st.just("progress"),
        st.builds(
            Progress,
            st.just(1), st.just(9), st.integers(0, 500), st.just(500),
            phase=st.sampled_from(["starting", "training", "evaluating", "saving", "finishing"]),
            step_seconds=amount, stall_s=amount, saved_step=st.integers(0, 500),
            started_step=st.integers(0, 500),
        ),
    ),
    st.tuples(st.just("ended"), st.none() | st.sampled_from(get_args(Cause)), st.none() | amount),
    st.tuples(st.just("driver"), st.floats(-1e6, 1e6), st.booleans()),
)  # fmt: skip


@given(st.lists(st.tuples(events, st.floats(0, 100, allow_subnormal=False)), max_size=40))
def test_the_parts_are_the_whole_whatever_happens(happened: list[tuple[tuple[Any, ...], float]]) -> None:
    """Drivers are killed between two writings, clocks on the wall jump, workers tell nonsense."""
    began_s = now_s = 7.0
    ledger, written, alive_s = Ledger(began_s=began_s, time_s=0.0), (0.0, {}), 0.0
    for event, passed_s in happened:
        now_s += passed_s
        match event:
            case "began", number, size:
                ledger.attempt_began(number, now_s, world_size=size)
            case "progress", progress:
                ledger.progress(progress, now_s)
            case "ended", cause, fault_s:
                ledger.attempt_ended(cause, now_s, fault_s=fault_s)
            case "driver", time_s, in_time:
                if in_time:  # else it was killed some time after it had written last
                    written = (alive_s + now_s - began_s, ledger.to_dict(now_s))
                alive_s, earlier = written
                ledger, began_s = Ledger(earlier, began_s=now_s, time_s=time_s), now_s
                written = (alive_s, ledger.to_dict(now_s))
        figures = ledger.figures(now_s)
        assert figures["goodput/seconds"] == pytest.approx(alive_s + now_s - began_s, abs=1e-6)
        split = parts(figures)
        assert sum(split.values()) == pytest.approx(figures["goodput/seconds"], abs=1e-6)
        assert all(seconds >= -1e-6 for seconds in split.values())
        assert 0 <= figures["goodput/share"] <= 1 + 1e-9
        lost = sum(value for key, value in figures.items() if key.startswith("goodput/lost_by/"))
        assert lost == pytest.approx(split["wasted"] + split["recovery"], abs=1e-6)
        assert figures["goodput/wasted_steps"] == sum(row["repeated_steps"] for row in ledger.attempts())
        assert figures["goodput/restarts"] <= max(0, len(ledger.attempts()) - 1)
        assert figures.get("goodput/recovery_max_seconds", 0.0) <= split["recovery"] + 1e-6
