"""The quality report: its figures against pandas and numpy, its warnings against planted faults and clean data."""

import datetime
import io
import json
import pickle
import re
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

from orchestrator.data.quality import (
    QualityReport,
    compare,
    drift_html,
    html,
    join_quality,
    merge_quality,
    survey_quality,
    warnings,
)
from orchestrator.data.quality import sketches as sketches_module
from orchestrator.data.quality.report import QUANTILES, ColumnReport
from orchestrator.data.splitting.rows import part_codes, split_rows
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection, Split


def section(**fields: Any) -> DataSection:
    return DataSection.model_validate({"source": {"kind": "parquet", "path": "x"}, **fields})


def parts_of(rows: int, labels: Any = None, seed: int = 0) -> NDArray[np.int8]:
    split = Split(kind="random" if labels is None else "stratified")
    return part_codes(split_rows(rows, split, seed, labels), rows)


def report_on(table: pa.Table, parts: NDArray[np.int8] | None = None, **fields: Any) -> QualityReport:
    parts = parts_of(table.num_rows) if parts is None else parts
    fields = {"target": "y", **fields}
    return merge_quality([survey_quality(table, parts, section(**fields))])


def column(report: QualityReport, name: str) -> ColumnReport:
    found = report.column(name)
    assert found is not None
    return found


def lines(report: QualityReport) -> list[str]:
    return [str(warning) for warning in warnings(report)]


RANDOM = np.random.default_rng(0)


def plain(rows: int = 600, **more: Any) -> pa.Table:
    """Two ordinary features, and a target that neither tells."""
    return pa.table(
        {
            "age": RANDOM.integers(18, 90, rows),
            "height": RANDOM.normal(170, 9, rows),
            **more,
            "y": RANDOM.integers(0, 2, rows),
        }
    )


def test_figures_are_those_of_pandas() -> None:
    rows = 900
    values = RANDOM.lognormal(1, 0.5, rows)
    values[::10] = np.nan
    frame = pd.DataFrame(
        {
            "number": values,
            "city": RANDOM.choice(["Rome", "Oslo", "Bern"], rows, p=[0.6, 0.3, 0.1]),
            "flag": RANDOM.integers(0, 2, rows).astype(bool),
            "when": pd.date_range("2024-01-01", periods=rows, freq="h"),
            "y": RANDOM.integers(0, 3, rows),
        }
    )
    parts = parts_of(rows)
    parts[:30] = -1
    report, kept = report_on(pa.Table.from_pandas(frame), parts), frame[30:]
    assert report.dropped == 30
    assert report.rows == tuple(int((parts == part).sum()) for part in range(3))
    number = column(report, "number")
    assert (number.count, number.nulls) == (870, kept["number"].isna().sum())
    assert number.distinct == kept["number"].nunique()
    assert number.distinct_exact
    summary, known = number.numbers, kept["number"].dropna()
    assert summary is not None
    assert summary.mean == pytest.approx(known.mean())
    assert summary.std == pytest.approx(known.std(ddof=0))
    assert (summary.least, summary.most) == (known.min(), known.max())
    assert summary.quantiles == pytest.approx(np.quantile(known, QUANTILES))
    assert sum(summary.counts) == summary.sample_rows == len(known)
    assert sum(summary.shares) == pytest.approx(1)
    assert max(summary.shares) < 0.11
    city = column(report, "city")
    assert dict(city.values) == kept["city"].value_counts().to_dict()
    assert city.is_category
    assert city.numbers is not None
    assert city.numbers.mean == 4
    when = column(report, "when").numbers
    assert when is not None
    assert when.least == kept["when"].min().timestamp()
    assert dict(column(report, "flag").values) == {str(k): v for k, v in kept["flag"].value_counts().items()}
    for item in report.classes:
        inside = parts[30:][(kept["y"] == int(item.name)).to_numpy()]
        assert item.counts == tuple(int((inside == part).sum()) for part in range(3))


@given(st.integers(1, 7), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_chunks_make_the_same_report_as_the_whole(chunks: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = 200
    table = pa.table(
        {
            "a": random.normal(1e6, 1, rows),
            "b": random.integers(0, 5, rows),
            "c": random.choice(["u", "v", None], rows),
            "y": random.choice(["no", "yes"], rows),
        }
    )
    parts = parts_of(rows, seed=seed)
    cuts = [0, *sorted(random.integers(0, rows + 1, chunks - 1).tolist()), rows]
    partials = [
        survey_quality(table.slice(a, b - a), parts[a:b], section(target="y"), chunk=i)
        for i, (a, b) in enumerate(pairwise(cuts))
    ]
    whole = merge_quality([survey_quality(table, parts, section(target="y"))])
    merged = merge_quality(iter(pickle.loads(pickle.dumps(partials))))
    assert (merged.rows, merged.classes, merged.duplicates) == (whole.rows, whole.classes, whole.duplicates)
    for one, two in zip(merged.columns, whole.columns, strict=True):
        assert (one.nulls, one.distinct, one.values) == (two.nulls, two.distinct, two.values)
        assert one.label_link == two.label_link
        if one.numbers is not None and two.numbers is not None:
            assert one.numbers.mean == pytest.approx(two.numbers.mean)
            assert one.numbers.std == pytest.approx(two.numbers.std)
            assert one.numbers.quantiles == two.numbers.quantiles
    # In any order of brackets.
    nested = merge_quality(
        [join_quality(partials[:1]), *([join_quality(partials[1:])] if partials[1:] else [])]
    )
    assert nested.duplicates == merged.duplicates


def test_no_chunk_is_an_error() -> None:
    with pytest.raises(SourceError, match="no rows"):
        merge_quality([])
    with pytest.raises(SourceError, match="no column 'z'"):
        report_on(plain(), target="z")


def test_partials_are_bounded_and_estimates_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches_module, "MAX_ROWS", 2_000)
    rows, chunks = 20_000, 4
    ids = np.arange(rows)
    ids[rows // 2 :: 10] = ids[: rows // 2 : 10]  # every tenth row of the second half is one of the first
    table = pa.table({"id": [f"n{i}" for i in ids], "y": RANDOM.integers(0, 2, rows)})
    parts = np.where(np.arange(rows) < rows // 2, 0, 1).astype(np.int8)
    step = rows // chunks
    partials = [
        survey_quality(table.slice(i * step, step), parts[i * step :][:step], section(target="y"), chunk=i)
        for i in range(chunks)
    ]
    joined = join_quality(partials)
    assert len(joined.duplicates.hashes) <= 2_000
    assert len(joined.sample.keys) == 10_000
    assert len(joined.columns["id"].distinct.hashes) <= 10_000
    assert len(joined.columns["id"].values.counts) <= 1_000
    report = merge_quality(partials)
    found = column(report, "id")
    assert not found.distinct_exact
    assert found.distinct == pytest.approx(19_000, rel=0.05)
    assert not report.duplicates.exact
    assert report.duplicates.distinct_rows == pytest.approx(19_000, rel=0.1)
    assert report.duplicates.across[0] == pytest.approx(1_000, rel=0.35)
    assert any("about" in line and "in train, too" in line for line in lines(report))


@pytest.mark.parametrize(
    ("load", "task"),
    [(load_breast_cancer, "classification"), (load_diabetes, "regression"), (load_wine, "classification")],
)
def test_clean_data_raises_no_alarm(load: Any, task: str) -> None:
    frame = load(as_frame=True).frame
    labels = frame["target"].to_numpy() if task == "classification" else None
    report = report_on(pa.Table.from_pandas(frame), parts_of(len(frame), labels), target="target")
    assert report.task == task
    assert lines(report) == []
    links = [item.label_link for item in report.features]
    assert all(link is not None and 0 <= link < 0.95 for link in links)


def test_the_one_repeated_flower_of_iris_is_all_that_is_found() -> None:
    frame = load_iris(as_frame=True).frame
    report = report_on(
        pa.Table.from_pandas(frame), parts_of(150, frame["target"].to_numpy()), target="target"
    )
    assert sum(report.duplicates.within) + sum(report.duplicates.across) == 1
    assert report.duplicates.distinct_rows == 149
    assert all("drop_duplicates" in line for line in lines(report))


def test_pictures_and_digits() -> None:
    digits = load_digits()
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(digits.images, np.float32))
    table = pa.table({"image": images, "y": digits.target})
    report = report_on(table, parts_of(len(digits.target), digits.target))
    image = column(report, "image")
    assert image.kind == "array"
    assert image.values == (("8×8", 1797),)
    assert image.numbers is not None
    assert image.numbers.mean == pytest.approx(digits.images.mean(), rel=1e-6)
    assert lines(report) == []


def test_encoded_images_are_looked_at_by_their_headers() -> None:
    def picture(size: tuple[int, int], mode: str, shade: int) -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, size, shade).save(buffer, "PNG")
        return buffer.getvalue()

    data = (
        [picture((8, 6), "L", i) for i in range(60)] + [picture((4, 4), "L", i) for i in range(59)] + [b"no"]
    )
    table = pa.table({"image": data, "y": ["cat", "dog"] * 60})
    report = report_on(table)
    assert dict(column(report, "image").values) == {"8×6 L": 60, "4×4 L": 59, "not an image": 1}
    assert [line for line in lines(report) if "1 of the 120 images" in line and "max_corrupt_share" in line]


PLANTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "constant": (
        {"c": [7.0] * 600},
        "'c' holds one value in all 600 rows: 7",
        r"data\.features: \[age, height\]",
    ),
    "null": ({"c": pa.nulls(600, pa.float64())}, "'c' is null in all 600 rows", "leave it out"),
    "some nulls": (
        {"c": [None if i % 10 == 0 else i / 7 for i in range(600)]},
        "'c' is null in 60 rows (10.00%)",
        r"add `- \{kind: fill_nulls, columns: \[c\]\}` to data\.clean",
    ),
    "many nulls": ({"c": [i / 7 if i % 10 == 0 else None for i in range(600)]}, "(90.00%)", "leave it out"),
    "id": (
        {"c": np.random.default_rng(1).permutation(600)},
        "a different value in each of 600 rows",
        "leave it out",
    ),
    "text id": (
        {"c": [f"user-{i}" for i in range(600)]},
        "a different value in each of 600 rows",
        "leave it out",
    ),
    "sentinel": (
        {"c": [-99999.0 if i == 5 else i / 600 for i in range(600)]},
        "'c' holds -99999",
        "kind: drop_outliers",
    ),
    "infinite": (
        {"c": [np.inf if i == 5 else i / 600 for i in range(600)]},
        "infinite in 1 of 600 rows",
        "source",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_nothing_else(name: str) -> None:
    more, fact, mend = PLANTED[name]
    found = warnings(report_on(plain(**more)))
    assert [warning.column for warning in found] == ["c"]
    assert fact in found[0].fact
    assert re.search(mend, found[0].mend)


LEAKS = {
    "the label itself": lambda y: y,
    "its name": lambda y: np.array(["benign", "malign"])[y],
    "a finer code": lambda y: y * 10 + np.arange(len(y)) % 4,
    "one in a thousand wrong": lambda y: np.where(np.arange(len(y)) == 3, 1 - y, y),
    "with noise": lambda y: y + np.random.default_rng(2).normal(0, 0.05, len(y)),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_column_that_tells_the_class_is_found(name: str) -> None:
    y = np.random.default_rng(5).integers(0, 2, 1000)
    table = plain(1000, leak=LEAKS[name](y)).set_column(3, "y", pa.array(y))
    found = warnings(report_on(table))
    assert [warning.column for warning in found] == ["leak"]
    assert "alone tells the target" in found[0].fact
    assert "data.features: [age, height]" in found[0].mend


def test_a_column_that_tells_a_number_is_found() -> None:
    y = RANDOM.normal(0, 1, 500)
    table = plain(500, fahrenheit=y * 1.8 + 32).set_column(3, "y", pa.array(y))
    assert [warning.column for warning in warnings(report_on(table))] == ["fahrenheit"]
    noisy = plain(500, good=y + RANDOM.normal(0, 0.2, 500)).set_column(3, "y", pa.array(y))
    assert lines(report_on(noisy)) == []


def test_what_fixes_the_label_by_rarity_alone_is_no_leak() -> None:
    codes = [f"street {i // 2}" for i in range(600)]
    assert lines(report_on(plain(street=codes))) == []
    y = np.array([1] * 5 + [0] * 595)  # so rare that chance finds a column for it
    table = plain().set_column(2, "y", pa.array(y))
    assert not any("alone tells" in line for line in lines(report_on(table)))


def test_rows_in_two_parts_are_found() -> None:
    table = plain(600)
    doubled = pa.concat_tables([table, table.slice(0, 30)])
    parts = np.array([0] * 500 + [1] * 60 + [2] * 40 + [1] * 20 + [2] * 10, np.int8)
    report = report_on(doubled, parts)
    assert report.duplicates.across == (20, 10, 0)
    assert report.duplicates.within == (0, 0, 0)
    (found,) = warnings(report)
    assert "20 of 80 val rows are in train, too; 10 of 50 test rows are in train, too" in found.fact
    assert "`- {kind: drop_duplicates}`" in found.mend
    coarse = pa.table({"a": RANDOM.integers(0, 4, 600), "y": RANDOM.integers(0, 2, 600)})
    (note,) = warnings(report_on(coarse))
    assert note.level == "note"
    assert "4 distinct values" in note.fact


def test_classes_of_very_different_sizes() -> None:
    y = np.array(["a"] * 540 + ["b"] * 50 + ["c"] * 4)
    parts = np.zeros(594, np.int8)
    parts[::2] = 1
    parts[540:590] = 0
    table = plain(594).set_column(2, "y", pa.array(y))
    text = "\n".join(lines(report_on(table, parts)))
    assert "class 'a' has 135 times the train rows of class 'c' (270 against 2)" in text
    assert "Write train.loss.class_weights: balanced" in text
    assert "one class has fewer than 10 rows: 'c' (4)" in text
    assert "the val part has no row of class 'b'. Write data.split.kind: stratified" in text


def test_multilabel_and_no_target() -> None:
    tags = [["x", "y"] if i % 2 else ["x"] for i in range(600)]
    table = plain().set_column(2, "y", pa.array(tags))
    report = report_on(table)
    assert report.task == "classification"
    assert {item.name: item.total for item in report.classes} == {"x": 600, "y": 300}
    texts = pa.table({"body": [f"This is the text with the number {i}." for i in range(100)]})
    stream = report_on(texts, target=None, text={})
    assert stream.task is None
    assert lines(stream) == []


def test_filled_nulls_need_no_mending() -> None:
    table = plain(c=[None if i % 10 == 0 else i / 7 for i in range(600)])
    assert lines(report_on(table, clean=[{"kind": "fill_nulls"}])) == []
    assert lines(report_on(table, clean=[{"kind": "fill_nulls", "columns": ["c"], "value": 0}])) == []
    assert lines(report_on(table, clean=[{"kind": "fill_nulls", "columns": ["age"]}]))


def test_the_report_survives_json() -> None:
    table = plain(city=RANDOM.choice(["Rome", "Oslo"], 600), c=[float("inf")] * 600)
    report = report_on(table, clean=[{"kind": "fill_nulls", "columns": ["age"]}])
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert QualityReport.from_dict(json.loads(text)) == report
    later = {**json.loads(text), "not_known_yet": 1}
    assert QualityReport.from_dict(later) == report


_N = 60
ODD: dict[str, Any] = {
    "null": pa.nulls(_N),
    "half": pa.array(np.arange(_N, dtype=np.float16)),
    "decimal": pa.array([Decimal(i) / 4 for i in range(_N)]),
    "time": pa.array([datetime.time(1, 2, i) for i in range(_N)]),
    "duration": pa.array([datetime.timedelta(seconds=i) for i in range(_N)]),
    "binary": pa.array([b"x"] * _N),
    "codes": pa.array([i % 3 for i in range(_N)]).dictionary_encode(),
    "uint64": pa.array([2**64 - 1 - i for i in range(_N)], pa.uint64()),
    "huge": pa.array([1e300 * (-1) ** i * (i + 1) for i in range(_N)]),
    "map": pa.array([[("a", i)] for i in range(_N)], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"a": i, "b": "x"} for i in range(_N)]),
    "ragged": pa.array([[float(i)] * (i % 3) for i in range(_N)]),
    "holed": pa.array([[1.0, None]] * _N),
    "view": pa.array([f"v{i}" for i in range(_N)], pa.string_view()),
    "date": pa.array([datetime.date(2024, 1, 1 + i % 28) for i in range(_N)]),
    "ancient": pa.array([datetime.datetime(1, 1, 1)] * _N),
    "nan": pa.array([float("nan")] * _N),
    "infinite": pa.array([float("inf"), float("-inf")] * (_N // 2)),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((_N, 3, 4))),
    "nested": pa.array([[[1, 2], [3, 4]]] * _N),
    "empty": pa.array([""] * _N),
}


@pytest.mark.parametrize("rows", [_N, 1, 0])
@pytest.mark.parametrize("name", ODD)
def test_no_type_of_column_is_too_odd_for_a_report(name: str, rows: int) -> None:
    parts = (np.arange(rows) % 4 - 1).astype(np.int8)
    table = pa.table({"x": ODD[name], "y": [i % 2 for i in range(_N)], "__path__": ["f"] * _N}).slice(0, rows)
    for target in ("y", "x"):
        partials = [survey_quality(table, parts, section(target=target), chunk=chunk) for chunk in (0, 1)]
        report = merge_quality(partials)
        assert report.rows[0] == 2 * int((parts == 0).sum())
        assert [one.name for one in report.columns] == (["x", "y"] if target == "y" else ["y", "x"])
        again = QualityReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
        assert again == report
        assert html(report)
        assert drift_html(compare(report, report))
        assert compare(report, report).level == "none"


class _Page(HTMLParser):
    """Whether tags are closed, and what a page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_escaped() -> None:
    evil = "<script>alert('x')</script>"
    table = plain(**{evil: [evil, "a & b"] * 300}, when=pa.array(range(600), pa.timestamp("s")))
    table = table.append_column("z", table["y"]).set_column(4, "y", pa.array([evil, "no"] * 300))
    text = html(report_on(table, clean=[]))
    page = _Page()
    page.feed(text)
    assert not page.open
    assert "script" not in page.seen
    assert not page.fetched
    assert "svg" in page.seen
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    empty = html(report_on(pa.table({"x": [1.5], "y": [1]}), np.zeros(1, np.int8)))
    assert "Nothing: no check found anything odd" in empty or "class" in empty
