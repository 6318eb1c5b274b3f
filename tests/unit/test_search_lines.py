"""What is said of a search: counts, the order of its trials, lines, rows, and parameters to be pasted."""

from __future__ import annotations

import json
import shlex
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.monitor import search_lines
from orchestrator.spec.document import Document
from orchestrator.spec.overrides import apply_overrides
from tests.unit.search_case import search, trial


def ids(trials: list[Any]) -> list[str]:
    return [item["id"] for item in trials]


def test_one_line_says_how_a_search_stands() -> None:
    assert search_lines.format_search(search()) == (
        "search: 3/8 trials finished · 2 running · 1 pruned · 1 failed · best trial-004 val/loss 0.1 · eta 20s"
    )
    ended = search(state="ENDED", why_ended="8 trials are done")
    assert search_lines.format_search(ended).endswith("· ended: 8 trials are done")
    assert search_lines.format_search(search(state="RETRAINING")).endswith("· training the best once more")
    of_unknown_length = search() | {"num_samples": None}
    assert search_lines.format_search(of_unknown_length).startswith("search: 3 trials finished · ")
    nothing = search(best=None) | {"trials": [], "eta_s": None}
    assert search_lines.format_search(nothing) == "search: 0/8 trials finished"


def test_one_line_says_what_is_best() -> None:
    assert search_lines.format_best(search()) == (
        "best so far: trial-004, val/loss 0.1 at epoch 4, lr=0.04938 hidden=[64, 32]"
    )
    assert search_lines.format_best(search(best=None)) is None


def test_the_best_comes_first_and_the_failed_last() -> None:
    assert ids(search_lines.ranked(search())) == [f"trial-00{number}" for number in (4, 3, 2, 5, 1)]
    assert ids(search_lines.ranked(search(mode="max"))) == [f"trial-00{number}" for number in (2, 3, 4, 5, 1)]
    diverged = search(trial(1, "PRUNED", float("nan")), trial(2, "PRUNED", 3.0))
    assert ids(search_lines.ranked(diverged)) == ["trial-002", "trial-001"]


def test_of_several_metrics_the_pareto_front_comes_first() -> None:
    trials = [
        trial(1, "COMPLETED", 0.1, metrics={"val/loss": 0.1, "val/accuracy": 0.2}),
        trial(2, "COMPLETED", 0.2, metrics={"val/loss": 0.2, "val/accuracy": 0.1}),
        trial(3, "COMPLETED", 0.3, metrics={"val/loss": 0.3}),
    ]
    several = search(
        *trials,
        metric=["val/loss", "val/accuracy"],
        mode=["min", "max"],
        best="trial-001",
        pareto=["trial-003", "trial-001"],
    )
    assert ids(search_lines.ranked(several)) == ["trial-001", "trial-003", "trial-002"]
    assert ids(search_lines.pareto_trials(several)) == ["trial-003", "trial-001"]
    assert search_lines.columns(several)[2:4] == ["val/loss", "val/accuracy"]
    assert search_lines.score_cells(several, trials[0]) == ["0.1", "0.2"]
    assert search_lines.score_cells(several, trials[2]) == ["0.3", ""]
    assert dict(search_lines.facts(several))["Pareto front"] == "trial-003, trial-001"


def test_facts_of_a_search() -> None:
    assert dict(search_lines.facts(search())) == {
        "search": "val/loss (min), by random and asha",
        "trials": "5 of 8: 2 RUNNING, 1 COMPLETED, 1 PRUNED, 1 FAILED",
        "best so far": "trial-004, val/loss 0.1 at epoch 4: lr=0.04938 hidden=[64, 32]",
        "elapsed": "43s",
        "time left": "about 20s",
        "at once": "2 trials of 1 worker",
    }


def test_a_failed_trial_has_its_reason_in_its_row() -> None:
    summary = search()
    failed, pruned = search_lines.rows(summary, summary["trials"][:2])
    assert len(failed) == len(search_lines.columns(summary))
    assert failed[-1] == "ValueError: no such layer · lr=0.01235 hidden=[64, 32]"
    assert pruned == ["trial-002", "PRUNED", "0.5", "2", "4s", "lr=0.02469 hidden=[64, 32]"]


def test_only_so_many_trials_are_shown_while_it_goes_on() -> None:
    assert ids(search_lines.live_trials(search(), 12)) == [f"trial-00{number}" for number in (4, 5, 3, 2, 1)]
    assert ids(search_lines.live_trials(search(), 3)) == ["trial-004", "trial-005", "trial-003"]
    many = search(*(trial(number, "RUNNING") for number in range(1, 30)))
    assert len(search_lines.live_trials(many, 12)) == 12
    mixed = search(*(trial(number, "PRUNED" if number < 6 else "RUNNING") for number in range(1, 30)))
    assert [item["state"] for item in search_lines.live_trials(mixed, 12)] == ["RUNNING"] * 8 + ["PRUNED"] * 4


def test_names_are_as_short_as_they_can_be() -> None:
    params = {"train.optimizer.kind": 1, "train.schedule.kind": 2, "train.optimizer.lr": 3, "seed": 4}
    assert search_lines.names_of(search(trial(1, "RUNNING", params=params))) == {
        "train.optimizer.kind": "optimizer.kind",
        "train.schedule.kind": "schedule.kind",
        "train.optimizer.lr": "lr",
        "seed": "seed",
    }


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(values)
def test_overrides_give_the_very_parameters_when_pasted(value: Any) -> None:
    pasted = shlex.split(search_lines.format_overrides({"model.args.x": value, "seed": 3}))
    document, faults = apply_overrides(Document({}, {}), pasted)
    assert not faults
    assert json.dumps(document.values) == json.dumps({"model": {"args": {"x": value}}, "seed": 3})
