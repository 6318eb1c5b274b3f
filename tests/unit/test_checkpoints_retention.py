"""What is kept is the union of newest, best and milestones, now and at any later time."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoints.manifest import Manifest, checkpoint_name
from orchestrator.checkpoints.retention import Retention, kept, ranked


def _manifest(step: int, epoch: int = 0, loss: float | None = None) -> Manifest:
    metrics = {} if loss is None else {"val/loss": loss}
    return Manifest(checkpoint_name(step), step, epoch, 1, 0.0, 1, metrics, {})


def _steps(names: set[str]) -> list[int]:
    return sorted(int(name.removeprefix("step-")) for name in names)


HISTORY = [
    _manifest(step, step // 10, loss)
    for step, loss in [
        (5, None),
        (10, 0.9),
        (15, None),
        (20, 0.2),
        (25, None),
        (30, 0.4),
        (40, 0.3),
        (45, None),
    ]
]


def test_each_rule_by_itself() -> None:
    assert _steps(kept(HISTORY, Retention(last=3, best=0))) == [30, 40, 45]
    assert _steps(kept(HISTORY, Retention(last=0, best=2))) == [20, 40]
    # The first at or after epochs 2 and 4, and at or after steps 15, 30 and 45.
    assert _steps(kept(HISTORY, Retention(last=0, best=0, every_n_epochs=2))) == [20, 40]
    assert _steps(kept(HISTORY, Retention(last=0, best=0, every_n_steps=15))) == [15, 30, 45]
    assert kept(HISTORY, Retention(last=0, best=0)) == set()


def test_the_union() -> None:
    everything = Retention(last=1, best=1, every_n_epochs=3, every_n_steps=25)
    assert _steps(kept(HISTORY, everything)) == [20, 25, 30, 45]


def test_the_best_come_first_and_what_is_not_a_number_is_none_of_them() -> None:
    history = [_manifest(step, loss=loss) for step, loss in [(1, 0.5), (2, float("nan")), (3, 0.1), (4, 0.1)]]
    assert [manifest.step for manifest in ranked(history, Retention())] == [3, 4, 1]
    assert [manifest.step for manifest in ranked(history, Retention(score_order="max"))] == [1, 3, 4]
    assert ranked(history, Retention(score_attribute="val/accuracy")) == []


HISTORIES = st.lists(
    st.tuples(st.integers(1, 9), st.one_of(st.none(), st.floats(0, 1), st.just(float("nan")))), max_size=25
)
POLICIES = st.builds(
    Retention,
    last=st.integers(0, 4),
    best=st.integers(0, 3),
    every_n_epochs=st.one_of(st.none(), st.integers(1, 4)),
    every_n_steps=st.one_of(st.none(), st.integers(1, 20)),
    score_order=st.sampled_from(["min", "max"]),
)


def _history(strides: Sequence[tuple[int, float | None]]) -> list[Manifest]:
    step, history = 0, []
    for stride, loss in strides:
        step += stride
        history.append(_manifest(step, step // 7, loss))
    return history


@given(HISTORIES, POLICIES)
def test_pruning_after_each_save_loses_nothing_that_pruning_at_the_end_would_keep(
    strides: list[tuple[int, float | None]], policy: Retention
) -> None:
    history = _history(strides)
    there: list[Manifest] = []
    for manifest in history:
        there.append(manifest)
        names = kept(there, policy)
        there = [one for one in there if one.name in names]
    assert {one.name for one in there} == kept(history, policy)


@given(HISTORIES, POLICIES)
def test_what_is_kept(strides: list[tuple[int, float | None]], policy: Retention) -> None:
    history = _history(strides)
    names = kept(history, policy)
    assert names <= {manifest.name for manifest in history}
    assert {manifest.name for manifest in history[::-1][: policy.last]} <= names
    scores = sorted(
        (value for one in history if (value := one.metrics.get("val/loss", float("nan"))) == value),
        reverse=policy.score_order == "max",
    )
    there = [one.metrics["val/loss"] for one in history if one.name in names and "val/loss" in one.metrics]
    for score in set(scores[: policy.best]):
        assert there.count(score) >= scores[: policy.best].count(score)
    for every, counts in ((policy.every_n_epochs, "epoch"), (policy.every_n_steps, "step")):
        if every is not None:
            reached = {getattr(one, counts) // every for one in history} - {0}
            assert {getattr(one, counts) // every for one in history if one.name in names} >= reached
