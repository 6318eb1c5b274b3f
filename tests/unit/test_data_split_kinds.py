"""Splits by group, time, key and given parts, and cross-validation, against scikit-learn's and as properties."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.model_selection import GroupKFold, StratifiedKFold

from orchestrator.data.splitting.rows import PARTS, part_codes, split_rows
from orchestrator.data.splitting.survey import split_survey
from orchestrator.errors import SourceError
from orchestrator.spec.data import Split

Parts = dict[str, NDArray[np.int64]]


def parted(split: Split, table: pa.Table, seed: int = 0, labels: NDArray[np.int64] | None = None) -> Parts:
    return split_rows(table.num_rows, split, seed, columns=split_survey(split, table, labels))


def assert_parts_all_rows(parts: Parts, num_rows: int) -> None:
    assert list(parts) == list(PARTS)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(num_rows))
    assert all((np.diff(rows) > 0).all() for rows in parts.values())


@given(
    st.lists(st.integers(1, 40), min_size=3, max_size=60),
    st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (0.8, 0.0, 0.2)]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_no_group_is_in_two_parts(sizes: list[int], ratios: tuple[float, float, float], seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, val, test = ratios
    split = Split(kind="grouped", by="patient", train=train, val=val, test=test)
    table = pa.table({"patient": [f"p{group}" for group in groups]})
    parts = parted(split, table, seed)
    assert_parts_all_rows(parts, len(groups))
    members = [set(groups[parts[name]].tolist()) for name in PARTS]
    assert sum(map(len, members)) == len(sizes)
    for name in PARTS:
        # A group more or less is all that whole groups can promise; moving one to an empty part adds one.
        assert abs(len(parts[name]) - getattr(split, name) * len(groups)) <= 2 * max(sizes)
    again = parted(split, table, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in PARTS)


def test_many_groups_come_near_the_shares_and_large_ones_are_everywhere() -> None:
    sizes = np.random.default_rng(0).geometric(0.1, 400)
    groups = np.repeat(np.arange(400), sizes)
    table = pa.table({"g": groups})
    parts = parted(Split(kind="grouped", by="g"), table)
    for name, share in zip(PARTS, (0.7, 0.15, 0.15), strict=True):
        assert abs(len(parts[name]) - share * len(groups)) <= 2
        assert np.mean(sizes[np.unique(groups[parts[name]])]) == pytest.approx(sizes.mean(), rel=0.25)


def test_the_order_of_the_rows_does_not_move_a_group() -> None:
    groups = np.repeat(np.arange(30), np.arange(1, 31))
    shuffled = np.random.default_rng(1).permutation(groups)
    split = Split(kind="grouped", by="g")
    one, two = (part_codes(parted(split, pa.table({"g": g})), len(g)) for g in (groups, shuffled))
    assert dict(zip(groups.tolist(), one.tolist(), strict=True)) == dict(
        zip(shuffled.tolist(), two.tolist(), strict=True)
    )


def test_one_large_group_and_too_few_groups() -> None:
    table = pa.table({"g": ["big"] * 90 + ["a"] * 5 + ["b"] * 5})
    parts = parted(Split(kind="grouped", by="g"), table)
    assert [len(parts[name]) for name in PARTS] == [90, 5, 5]
    with pytest.raises(SourceError, match=r"leave the (val|test) part .* empty.*more groups"):
        parted(Split(kind="grouped", by="g"), pa.table({"g": ["a", "b"] * 50}))


@given(st.lists(st.integers(0, 50), min_size=3, max_size=200), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_training_comes_before_validation_and_ties_stay_together(times: list[int], seed: int) -> None:
    split = Split(kind="time", by="when")
    table = pa.table({"when": times})
    if len(set(times)) < 3:
        with pytest.raises(SourceError, match="empty"):
            parted(split, table, seed)
        return
    parts = parted(split, table, seed)
    assert_parts_all_rows(parts, len(times))
    values = np.array(times)
    assert values[parts["train"]].max() < values[parts["val"]].min()
    assert values[parts["val"]].max() < values[parts["test"]].min()


@pytest.mark.parametrize(
    "column",
    [
        pa.array(np.arange(100)),
        pa.array(np.arange(100) / 7),
        pa.array(2**63 + np.arange(100, dtype=np.uint64) * 2**20),
        pa.array(np.arange("2024-01-01", "2024-04-10", dtype="datetime64[D]")),
        pa.array(np.arange("2024-01-01", "2024-04-10", dtype="datetime64[D]").astype("datetime64[ns]")),
        pa.array([str(day) for day in np.arange("2024-01-01", "2024-04-10", dtype="datetime64[D]")]),
        pa.array(
            [f"{day}T10:00:00Z" for day in np.arange("2024-01-01", "2024-04-10", dtype="datetime64[D]")]
        ),
    ],
    ids=["integers", "floats", "large integers", "dates", "timestamps", "text", "text with a zone"],
)
def test_a_time_split_of_distinct_times_has_exact_shares(column: pa.Array) -> None:
    order = np.random.default_rng(0).permutation(100)
    parts = parted(Split(kind="time", by="t"), pa.table({"t": column.take(pa.array(order))}))
    assert [sorted(order[parts[name]].tolist()) for name in PARTS] == [
        list(range(70)),
        list(range(70, 85)),
        list(range(85, 100)),
    ]


def test_what_has_no_order_in_time_is_refused() -> None:
    with pytest.raises(SourceError, match=r"no date or time, as 'soon'"):
        parted(Split(kind="time", by="t"), pa.table({"t": ["soon", "later"]}))
    with pytest.raises(SourceError, match=r"null in 1 of 3 rows.*drop_nulls"):
        parted(Split(kind="time", by="t"), pa.table({"t": [1.0, None, 2.0]}))
    with pytest.raises(SourceError, match="no column 'when'"):
        parted(Split(kind="time", by="when"), pa.table({"t": [1.0]}))


def test_given_parts_by_a_column() -> None:
    table = pa.table({"part": ["test", "train", "val", "train"]})
    parts = parted(Split(kind="given", by="part"), table)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [1, 3], "val": [2], "test": [0]}
    years = pa.table({"year": [2022, 2020, 2021, 2020]})
    split = Split.model_validate(
        {"kind": "given", "by": "year", "values": {"train": [2020, 2021], "test": [2022]}}
    )
    parts = parted(split, years)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "train": [1, 2, 3],
        "val": [],
        "test": [0],
    }
    flags = Split.model_validate({"kind": "given", "by": "f", "values": {"train": [False], "val": [True]}})
    assert parted(flags, pa.table({"f": [True, False]}))["val"].tolist() == [0]
    with pytest.raises(SourceError, match=r"holds 2023, which names no part.*data\.split\.values"):
        parted(split, pa.table({"year": [2020, 2023]}))
    both = Split.model_validate({"kind": "given", "by": "f", "values": {"train": [1], "val": ["1"]}})
    with pytest.raises(SourceError, match="two parts"):
        parted(both, pa.table({"f": [1]}))
    with pytest.raises(SourceError, match="none of the 1 rows is given to train"):
        parted(Split(kind="given", by="part"), pa.table({"part": ["val"]}))


def test_given_parts_by_files() -> None:
    paths = [
        "train/cat/1.png",
        "train/dog/2.png",
        "validation/cat/3.png",
        "old/test_a.csv",
        "old/deep/test_b.csv",
    ]
    files = {"train": ["train"], "val": ["validation/**"], "test": ["**/test_*.csv"]}
    split = Split.model_validate({"kind": "given", "files": files})
    table = pa.table({"__path__": pa.array(paths).dictionary_encode(), "x": range(5)})
    parts = parted(split, table)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "train": [0, 1],
        "val": [2],
        "test": [3, 4],
    }
    with pytest.raises(SourceError, match=r"no pattern matches the file 'other/1\.png'"):
        parted(split, pa.table({"__path__": ["other/1.png"]}))
    with pytest.raises(SourceError, match="matches patterns of train and test"):
        parted(split, pa.table({"__path__": ["train/test_1.csv"]}))
    with pytest.raises(SourceError, match="come from no files"):
        parted(split, pa.table({"x": [1]}))


@given(st.integers(20, 300), st.integers(2, 7), st.sampled_from([0.0, 0.2]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_row_is_validated_once_over_the_folds(n: int, folds: int, test: float, seed: int) -> None:
    splits = [Split.model_validate({"folds": folds, "fold": i, "test": test}) for i in range(folds)]
    all_parts = [split_rows(n, split, seed) for split in splits]
    tested = all_parts[0]["test"]
    for parts in all_parts:
        assert_parts_all_rows(parts, n)
        assert np.array_equal(parts["test"], tested)
    validated = np.concatenate([parts["val"] for parts in all_parts])
    assert np.array_equal(np.sort(np.concatenate([validated, tested])), np.arange(n))
    sizes = [len(parts["val"]) for parts in all_parts]
    assert max(sizes) - min(sizes) <= 1
    assert abs(len(tested) - test * n) <= 1


@given(st.lists(st.integers(5, 60), min_size=2, max_size=8), st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_stratified_folds_are_as_even_as_those_of_scikit_learn(
    counts: list[int], folds: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    ours = np.empty(len(labels), int)
    for fold in range(folds):
        split = Split.model_validate({"kind": "stratified", "folds": folds, "fold": fold})
        ours[split_rows(len(labels), split, seed, labels)["val"]] = fold
    theirs = np.empty(len(labels), int)
    for fold, (_, rows) in enumerate(
        StratifiedKFold(folds, shuffle=True, random_state=0).split(labels, labels)
    ):
        theirs[rows] = fold

    def spread(chosen: Any) -> list[int]:
        table = np.zeros((len(counts), folds), int)
        np.add.at(table, (labels, chosen), 1)
        return [int(np.ptp(row)) for row in table] + [int(np.ptp(table.sum(axis=0)))]

    assert all(mine <= max(1, other) for mine, other in zip(spread(ours), spread(theirs), strict=True))


def test_grouped_folds_have_the_sizes_of_scikit_learns() -> None:
    sizes = np.random.default_rng(3).geometric(0.05, 60)
    groups = np.random.default_rng(4).permutation(np.repeat(np.arange(60), sizes))
    table, found = pa.table({"g": groups}), []
    for fold in range(5):
        split = Split.model_validate({"kind": "grouped", "by": "g", "folds": 5, "fold": fold})
        parts = parted(split, table, seed=1)
        assert not set(groups[parts["train"]]) & set(groups[parts["val"]])
        found.append(parts["val"])
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(len(groups)))
    theirs = [len(rows) for _, rows in GroupKFold(5).split(groups, groups=groups)]
    assert sorted(map(len, found)) == sorted(theirs)
    held = Split.model_validate({"kind": "grouped", "by": "g", "folds": 3, "fold": 0, "test": 0.2})
    parts = parted(held, table)
    names = [set(groups[parts[name]].tolist()) for name in PARTS]
    assert sum(map(len, names)) == 60
    assert all(names)


def test_too_few_rows_for_the_folds() -> None:
    with pytest.raises(SourceError, match=r"val part .* smaller data\.split\.folds"):
        split_rows(3, Split.model_validate({"folds": 5, "fold": 4}), 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "grouped"}, "needs one column"),
        ({"kind": "time", "by": ["a", "b"]}, "needs one column"),
        ({"by": "a"}, "takes no 'by'"),
        ({"kind": "given"}, "either a column"),
        ({"kind": "given", "by": "a", "files": {"train": ["x"]}}, "either a column"),
        ({"kind": "given", "by": "a", "train": 0.5, "val": 0.25, "test": 0.25}, "leave the ratios"),
        ({"values": {"train": ["x"]}}, "need kind: given"),
        ({"folds": 5}, "needs both"),
        ({"fold": 1}, "needs both"),
        ({"folds": 5, "fold": 5}, "0 to 4"),
        ({"folds": 5, "fold": 0, "train": 0.7}, "train is 0.8; leave it out"),
        ({"kind": "time", "by": "a", "folds": 5, "fold": 0}, "has no folds"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Split.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"folds": 5, "fold": 2},
        {"folds": 3, "fold": 0, "test": 0.1},
        {"kind": "given", "by": "part"},
        {"kind": "hash", "by": ["a", "b"]},
    ],
)
def test_a_rendered_split_reads_as_the_same(fields: dict[str, Any]) -> None:
    split = Split.model_validate(fields)
    assert Split.model_validate(split.model_dump(mode="json")) == split
