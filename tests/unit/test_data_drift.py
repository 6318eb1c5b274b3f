"""Drift: the statistics against scipy, the verdicts against planted changes and against none."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.quality import (
    ColumnDrift,
    DriftReport,
    QualityReport,
    compare,
    drift_html,
    merge_quality,
    survey_quality,
    verdicts,
)
from orchestrator.data.quality.statistics import (
    chi2_tail,
    chi_square,
    kolmogorov_smirnov,
    kolmogorov_tail,
    population_stability_index,
    psi_p_value,
    shares_p_value,
)
from orchestrator.spec.data import DataSection


def report_on(seed: int, rows: int = 2000, **changes: Any) -> QualityReport:
    """A table of four kinds of columns, with changes to some of them."""
    random = np.random.default_rng(seed)
    columns = {
        "age": random.normal(40, 10, rows),
        "visits": random.poisson(2, rows),
        "city": random.choice(["Rome", "Oslo", "Bern"], rows, p=[0.5, 0.3, 0.2]),
        "member": random.integers(0, 2, rows).astype(bool),
        "y": random.integers(0, 2, rows),
        **{name: make(random, rows) for name, make in changes.items()},
    }
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    fields = {
        "source": {"kind": "parquet", "path": "x"},
        "target": "y" if "y" in table.column_names else None,
    }
    section = DataSection.model_validate(fields | ({} if fields["target"] else {"text": {}}))
    return merge_quality([survey_quality(table, np.zeros(rows, np.int8), section)])


def column(report: DriftReport, name: str) -> ColumnDrift:
    return next(column for column in report.columns if column.name == name)


REFERENCE = report_on(0, 5000)


@given(st.integers(1, 60), st.floats(0.01, 200))
@settings(max_examples=100, deadline=None)
def test_the_chi_square_tail_is_scipys(degrees: int, value: float) -> None:
    assert chi2_tail(value, degrees) == pytest.approx(
        scipy.stats.chi2.sf(value, degrees), rel=1e-6, abs=1e-12
    )


@given(st.floats(0.0, 4))
@settings(max_examples=100, deadline=None)
def test_the_kolmogorov_tail_is_scipys(value: float) -> None:
    assert kolmogorov_tail(value) == pytest.approx(scipy.stats.kstwobign.sf(value), rel=1e-6, abs=1e-9)


@given(st.integers(20, 300), st.integers(20, 300), st.floats(-1, 1), st.booleans(), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_kolmogorov_smirnov_is_scipys(n: int, m: int, shift: float, ties: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.normal(0, 1, n), random.normal(shift, 1, m)
    if ties:
        first, second = first.round(1), second.round(1)
    statistic, p_value = kolmogorov_smirnov(first.tolist(), second.tolist())
    theirs = scipy.stats.ks_2samp(first, second, method="asymp")
    assert statistic == pytest.approx(theirs.statistic)
    # Two approximations, which agree where it matters.
    assert p_value == pytest.approx(theirs.pvalue, abs=0.01 if theirs.pvalue < 0.1 else 0.05)


@given(
    st.integers(2, 12).flatmap(
        lambda k: st.tuples(*[st.lists(st.integers(10, 300), min_size=k, max_size=k) for _ in range(2)])
    )
)
@settings(max_examples=60, deadline=None)
def test_chi_square_is_scipys(counts: tuple[list[int], list[int]]) -> None:
    statistic, p_value = chi_square(*counts)
    theirs = scipy.stats.chi2_contingency(np.array(counts), correction=False)
    if theirs.expected_freq.min() < 5:
        return  # rare categories are joined here
    assert statistic == pytest.approx(theirs.statistic)
    assert p_value == pytest.approx(theirs.pvalue, abs=1e-9)


def test_psi_by_hand_and_by_its_distribution() -> None:
    assert population_stability_index([0.5, 0.5], [0.5, 0.5]) == 0
    by_hand = (0.7 - 0.5) * np.log(0.7 / 0.5) + (0.3 - 0.5) * np.log(0.3 / 0.5)
    assert population_stability_index([0.5, 0.5], [0.7, 0.3]) == pytest.approx(by_hand)
    assert np.isfinite(population_stability_index([1.0, 0.0], [0.0, 1.0]))
    random = np.random.default_rng(0)
    chances = []
    for _ in range(400):
        first, second = random.multinomial(2000, [0.1] * 10), random.multinomial(500, [0.1] * 10)
        psi = population_stability_index((first / 2000).tolist(), (second / 500).tolist())
        chances.append(psi_p_value(psi, 10, 2000, 500))
    assert scipy.stats.kstest(chances, "uniform").pvalue > 0.001


def test_degenerate_samples() -> None:
    assert kolmogorov_smirnov([], [1.0]) == (0.0, 1.0)
    assert chi_square([0, 0], [1, 2]) == (0.0, 1.0)
    assert chi_square([3], [4]) == (0.0, 1.0)
    assert psi_p_value(0.5, 1, 10, 10) == 1.0
    assert shares_p_value(0, 10, 0, 10) == 1.0
    assert shares_p_value(10, 100, 30, 100) == pytest.approx(0.0004, abs=1e-4)


@pytest.mark.parametrize("rows", [30, 300, 5000])
@pytest.mark.parametrize("seed", range(1, 6))
def test_rows_of_the_same_kind_have_not_drifted(seed: int, rows: int) -> None:
    report = compare(REFERENCE, report_on(seed, rows))
    drifted = [line for line in verdicts(report)[:-1] if "no drift" not in line]
    assert len(drifted) <= (1 if rows == 30 else 0)  # the chance is 1% a column
    assert len(report.columns) == 5


def test_changes_are_found_and_nothing_else() -> None:
    new = report_on(
        7,
        age=lambda random, n: random.normal(55, 10, n),
        city=lambda random, n: random.choice(["Rome", "Oslo", "Paris"], n, p=[0.4, 0.3, 0.3]),
    )
    report = compare(REFERENCE, new)
    assert {one.name: one.level for one in report.columns} == {
        "age": "large", "city": "large", "visits": "none", "member": "none", "y": "none",
    }  # fmt: skip
    assert report.level == "large"
    age, city = column(report, "age"), column(report, "city")
    assert age.ks == pytest.approx(scipy.stats.norm.cdf(0.75) - scipy.stats.norm.cdf(-0.75), abs=0.07)
    assert age.p_value is not None
    assert age.p_value < 1e-6
    assert [value for value, _ in city.new_categories] == ["Paris"]
    text = "\n".join(verdicts(report))
    assert "age: large drift: PSI" in text
    assert "1 new categories in 3" in text
    assert "2 of 5 columns drifted, over 2000 new rows" in text


def test_a_moderate_shift_is_moderate() -> None:
    report = compare(REFERENCE, report_on(8, 5000, age=lambda random, n: random.normal(44, 10, n)))
    assert column(report, "age").level == "moderate"


def test_nulls_kinds_and_columns() -> None:
    def holed(random: Any, n: int) -> Any:
        values = random.normal(40, 10, n)
        values[: n // 2] = np.nan
        return values

    report = compare(
        REFERENCE, report_on(9, age=holed, city=lambda random, n: np.arange(n), visits=lambda *_: None)
    )
    assert column(report, "age").reasons == ("null in 50.0% of the rows instead of 0.0%",)
    assert column(report, "age").level == "large"
    assert column(report, "city").reasons == ("it holds number instead of text",)
    assert column(report, "visits").reasons == ("the new data does not have it",)
    wider = compare(REFERENCE, report_on(9, more=lambda random, n: random.normal(0, 1, n)))
    assert wider.added == ("more",)
    assert wider.level == "none"
    assert any("more" in line for line in verdicts(wider))


def test_rows_without_a_target_are_compared_by_their_features() -> None:
    report = compare(REFERENCE, report_on(3, y=lambda *_: None))
    assert [one.name for one in report.columns if one.name == "y"] == []
    assert report.level == "none"


def test_a_rare_new_category_is_told_but_no_drift() -> None:
    def cities(random: Any, n: int) -> Any:
        values = random.choice(["Rome", "Oslo", "Bern"], n, p=[0.5, 0.3, 0.2])
        values[0] = "Rom"
        return values

    report = compare(REFERENCE, report_on(4, city=cities))
    assert column(report, "city").level == "none"
    assert any(
        "city: no drift: 1 new categories in 0.05% of the rows: 'Rom'" in line for line in verdicts(report)
    )


def test_the_page_and_the_dict() -> None:
    evil = "<b>&"
    new = report_on(7, city=lambda random, n: random.choice(["Rome", evil], n))
    report = compare(QualityReport.from_dict(json.loads(json.dumps(REFERENCE.to_dict()))), new)
    assert report == compare(REFERENCE, new)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["level"] == "large"
    text = drift_html(report)
    assert evil not in text
    assert "&lt;b&gt;&amp;" in text
    assert "<svg" in text
    assert "<script" not in text
