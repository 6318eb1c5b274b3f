"""Text, language models and lists of labels, from the source to the batch."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.data.sources.fingerprint import fingerprint
from orchestrator.data.sources.read import read_source
from orchestrator.errors import DataError, SourceError
from orchestrator.spec import load_spec
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder
from tests.raw_rows import raw_rows
from tests.unit.spec_helpers import faults_of, minimal

SPLIT = {"train": 0.5, "val": 0.25, "test": 0.25}


def _section(folder: Path, **more: Any) -> DataSection:
    return DataSection.model_validate(
        {"source": {"kind": "parquet", "path": str(folder / "rows.parquet")}, "split": SPLIT, **more}
    )


def _prepare(folder: Path, section: DataSection, task: str = "auto") -> Prepared:
    return Prepared.load(prepare(section, task=task, seed=0, storage=Folder.at(folder)).folder)


def _reviews(folder: Path, n: int = 40) -> pd.DataFrame:
    """Each text has a word of its own, `only<row>`."""
    frame = pd.DataFrame(
        {
            "text": [f"The plot is {'good' if i % 2 else 'bad, bad'} only{i}" for i in range(n)],
            "label": ["pos" if i % 2 else "neg" for i in range(n)],
        }
    )
    pq.write_table(pa.Table.from_pandas(frame), folder / "rows.parquet")
    return frame


def test_text_is_fitted_on_the_training_part_alone(tmp_path: Path) -> None:
    frame = _reviews(tmp_path)
    section = _section(tmp_path, target="label", text={"length": 8})
    prepared = _prepare(tmp_path, section)
    manifest, pipeline = prepared.manifest, prepared.pipeline
    assert (manifest.task, manifest.feature_kind, manifest.classes) == ("binary", "text", ["neg", "pos"])
    assert manifest.input_shape == manifest.stored_shape == (8,)
    assert pipeline.tokenizer is not None
    vocabulary = pipeline.tokenizer.vocabulary
    train = prepared.part("train").source_rows()
    assert {word for word in vocabulary if word.startswith("only")} == {f"only{row}" for row in train}
    assert set(vocabulary) - {f"only{row}" for row in train} == {"the", "plot", "is", "good", "bad", ","}
    assert manifest.vocab_size == pipeline.vocab_size == 2 + 6 + 20
    for name in ("train", "val", "test"):
        part = prepared.part(name)
        batch = part.gather(np.arange(part.num_rows)[::-1].copy())
        inputs = pipeline.transform(batch.features)
        assert (inputs.dtype, batch.features.dtype) == (torch.int64, torch.uint8)
        for row, ids in zip(part.source_rows()[::-1], inputs.tolist(), strict=True):
            words = [pipeline.tokenizer.token(index) for index in ids if index > 1]
            known = str(frame["text"][row]).lower().replace(",", " ,").split()
            assert words == (known if name == "train" else known[:-1])
            assert ids.count(1) == (0 if name == "train" else 1)
            assert ids[len(known) :] == [0] * (8 - len(known))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
def test_raw_texts_are_encoded_as_the_prepared_ones(tmp_path: Path, tokenizer: str) -> None:
    _reviews(tmp_path)
    section = _section(tmp_path, target="label", text={"length": 5, "tokenizer": tokenizer})
    prepared = _prepare(tmp_path, section)
    raw = raw_rows(section, prepared, "test")
    part = prepared.part("test")
    expected = part.gather(np.arange(part.num_rows)).features.numpy()
    assert expected.dtype == (np.uint16 if tokenizer == "byte" else np.uint8)
    texts = raw["text"].to_pylist()
    for rows in (
        raw,
        texts,
        np.array(texts),
        {"text": texts},
        raw.to_pandas(),
        raw.to_pylist(),
        pa.table({"text": raw["text"].combine_chunks().dictionary_encode(), "more": texts}),
    ):
        assert np.array_equal(prepared.pipeline.encode(rows), expected)
    shuffled = np.array([4, 1, 2, 0])
    assert np.array_equal(part.gather(shuffled).features.numpy(), expected[shuffled])
    assert prepared.raw_example(2).equals(raw_rows(section, prepared, "train").slice(0, 2))


def test_texts_that_do_not_fit(tmp_path: Path) -> None:
    _reviews(tmp_path)
    pipeline = _prepare(tmp_path, _section(tmp_path, target="label", text={})).pipeline
    for rows, message in (
        (["a", None], "row 1 holds no text"),
        (["a", 3], "row 1 holds a int"),
        ({"text": [1, 2]}, "must hold text, not int64"),
        ({"txt": ["a"]}, "no column 'text'"),
        ("a", "rows are a str"),
    ):
        with pytest.raises(DataError, match=message):
            pipeline.encode(rows)


def test_gaps_between_texts_are_filled_as_in_training(tmp_path: Path) -> None:
    frame = _reviews(tmp_path)
    frame.loc[::4, "text"] = None
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "rows.parquet")
    fill = {"kind": "fill_nulls", "columns": ["text"], "value": "nothing"}
    pipeline = _prepare(tmp_path, _section(tmp_path, target="label", text={}, clean=[fill])).pipeline
    assert np.array_equal(pipeline.encode([{"text": None}]), pipeline.encode(["nothing"]))


@pytest.mark.parametrize(
    ("columns", "more", "message"),
    [
        (
            {"text": ["a"]},
            {},
            r"'text' is string. name other columns .*, or read 'text' as text by data.text$",
        ),
        (
            {"x": [1], "text": ["a"]},
            {},
            r"data.features: \[x\], encode them .*, or read 'text' .* data.features: \[text\]",
        ),
        ({"x": [1], "text": ["a"]}, {"text": {}}, r"one column of strings.*are x, text.*features: \[text\]"),
        ({"x": [1]}, {"text": {}}, r"data.text: feature 'x' is int64"),
        ({"text": [" "]}, {"text": {}}, r"data.text: the texts of the training part hold no token"),
        ({"text": ["a"]}, {"text": {}, "target_transform": "standardize"}, "target_transform"),
    ],
)
def test_columns_that_are_no_text(
    tmp_path: Path, columns: dict[str, list[Any]], more: dict[str, Any], message: str
) -> None:
    rows = {name: values * 40 for name, values in columns.items()} | {"label": ["a", "b"] * 20}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    with pytest.raises(SourceError, match=message):
        _prepare(tmp_path, _section(tmp_path, target="label", **more))


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    (tmp_path / "deep" / "a.md").write_text("three ä", encoding="utf-8")
    (tmp_path / "notes.py").write_text("pass\n")

    def texts(path: str, rows: str) -> list[str]:
        source = {"kind": "text", "path": str(tmp_path / path), "rows": rows}
        table = read_source(DataSection.model_validate({"source": source, "text": {}}))
        assert table.column_names == ["text"]
        result: list[str] = table["text"].to_pylist()
        return result

    assert texts("", "file") == ["one\n\ntwo\n", "three ä"]
    assert texts("", "line") == ["one", "", "two", "three ä"]
    assert texts("*.py", "file") == ["pass\n"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match=r"b.txt cannot be read as UTF-8 text: .*0xff"):
        texts("", "file")


def test_the_fingerprint_covers_text_files(tmp_path: Path) -> None:
    section = DataSection.model_validate({"source": {"kind": "text", "path": str(tmp_path)}, "text": {}})
    (tmp_path / "a.txt").write_text("one")
    first = fingerprint(section)
    os.utime(tmp_path / "a.txt", (1, 1))
    assert fingerprint(section) == first
    (tmp_path / "b.md").write_text("two")
    assert fingerprint(section) != first


def _decode(prepared: Prepared, ids: torch.Tensor) -> str:
    tokenizer = prepared.pipeline.tokenizer
    assert tokenizer is not None
    return "".join(map(tokenizer.token, ids.reshape(-1).tolist()))


def test_a_language_model_learns_one_long_text_piece_by_piece(tmp_path: Path) -> None:
    letters = np.random.default_rng(0).choice(list("abcdefgh \n"), 1200)
    letters[-100:] = "z"  # only the test part has it
    text = "".join(letters)
    (tmp_path / "all.txt").write_text(text)
    section = DataSection.model_validate(
        {
            "source": {"kind": "text", "path": str(tmp_path)},
            "text": {"tokenizer": "char", "length": 16},
            "split": SPLIT,
        }
    )
    prepared = _prepare(tmp_path, section, "language_modeling")
    manifest = prepared.manifest
    assert (manifest.task, manifest.target, manifest.classes) == ("language_modeling", None, None)
    assert (manifest.vocab_size, manifest.num_outputs, manifest.class_counts) == (12, 12, None)
    assert manifest.input_shape == (16,)
    # 600, 300 and 300 characters, each part's last one only a target
    assert dict(manifest.rows) == {"train": 37, "val": 18, "test": 18}
    for name, piece in {"train": text[:600], "val": text[600:900], "test": text[900:]}.items():
        part = prepared.part(name)
        batch = part.gather(np.arange(part.num_rows))
        features, targets = prepared.pipeline.transform(batch.features), batch.targets
        targets = prepared.pipeline.transform_targets(targets)
        assert (features.dtype, targets.dtype) == (torch.int64, torch.int64)
        assert features.shape == targets.shape == (part.num_rows, 16)
        used = part.num_rows * 16
        known = piece[:used].replace("z", ""), piece[1 : used + 1].replace("z", "")
        assert (_decode(prepared, features), _decode(prepared, targets)) == known
        assert (name == "test") == bool((targets == 1).any())
        assert int(targets.min()) >= 1
        assert torch.equal(features.reshape(-1)[1:], targets.reshape(-1)[:-1])
        some = np.array([3, 0, 7])
        assert torch.equal(part.gather(some).targets, targets[some])
    assert prepared.raw_example().num_rows == 1
    assert prepared.raw_example()["text"][0].as_py() == text[:1000]


def test_a_language_model_learns_from_whole_documents(tmp_path: Path) -> None:
    documents = [f"{chr(65 + i)}{'.' * i}" for i in range(26)]
    (tmp_path / "all.txt").write_text("\n".join(documents))
    section = DataSection.model_validate(
        {
            "source": {"kind": "text", "path": str(tmp_path / "all.txt"), "rows": "line"},
            "text": {"tokenizer": "byte", "length": 4},
            "split": SPLIT,
        }
    )
    prepared = _prepare(tmp_path, section, "language_modeling")
    assert prepared.manifest.vocab_size == 258
    seen: list[str] = []
    for name in ("train", "val", "test"):
        part = prepared.part(name)
        batch = part.gather(np.arange(part.num_rows))
        stream = _decode(prepared, batch.features) + _decode(prepared, batch.targets)[-1:]
        letters = [sign for sign in stream if sign.isalpha()]
        assert letters == sorted(letters)
        seen += letters
        whole = "\n".join(documents[ord(letter) - 65] for letter in letters)
        # The last document may be cut, or missing where nothing of it came into a sample.
        assert stream.rstrip("\n").startswith(whole[: len(stream) - 5])
        begins = [int(row) for row in part.source_rows()]
        signs = [_decode(prepared, sample) for sample in batch.features]
        for row, sign in zip(begins, signs, strict=True):
            assert sign[0] in documents[row] + "\n"
    assert len(seen) == len(set(seen)) >= 24


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"split": {"kind": "stratified"}}, "stratified"),
        ({"text": {"pad": "left"}}, r"data.text.pad: left"),
        ({"text": {"length": 60}}, r"val part holds fewer than the 61 tokens"),
        ({"target": "text", "features": ["other"]}, "no column 'other'"),
        ({"target_transform": "standardize"}, "leave data.target and data.target_transform out"),
    ],
)
def test_what_a_language_model_cannot_use(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    (tmp_path / "all.txt").write_text("so few words " * 100)
    section = {"source": {"kind": "text", "path": str(tmp_path)}, "text": {}} | more
    with pytest.raises(SourceError, match=message):
        _prepare(tmp_path, DataSection.model_validate(section), "language_modeling")


@pytest.mark.parametrize(
    ("data", "task", "field", "message"),
    [
        ({}, "auto", "data.target", "name the column to learn"),
        ({"text": {}}, "auto", "data.target", "or write train.task: language_modeling"),
        ({"text": {}, "target": "y"}, "language_modeling", "data.target", "must be left out"),
        ({"text": {}, "target": "y", "transforms": [{"kind": "min_max"}]}, "auto", "data", "scale numbers"),
    ],
)
def test_specs_whose_text_target_and_task_do_not_fit(
    data: dict[str, Any], task: str, field: str, message: str
) -> None:
    source = {"source": {"kind": "text", "path": "a.txt"}}
    fault = faults_of(minimal(data=source | data, train={"task": task}))[field]
    assert message in str(fault)


def test_a_language_model_needs_text_and_no_target() -> None:
    source = {"source": {"kind": "text", "path": "a.txt"}}
    faults = faults_of(minimal(data=source | {"target": "y"}, train={"task": "language_modeling"}))
    assert sorted(faults) == ["data.target", "data.text"]
    load_spec(minimal(data=source | {"text": {}}, train={"task": "language_modeling"}))


def test_lists_of_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = [[name for name in ("b", "a", "c") if rng.random() < 0.4] for _ in range(40)]
    table = pa.table({"x": rng.normal(size=40), "tags": labels})
    pq.write_table(table, tmp_path / "rows.parquet")
    section = _section(tmp_path, target="tags", clean=[{"kind": "drop_duplicates"}])
    prepared = _prepare(tmp_path, section)
    manifest = prepared.manifest
    assert (manifest.task, manifest.classes, manifest.num_outputs) == ("multilabel", ["a", "b", "c"], 3)
    assert manifest.class_counts is not None
    for name in ("train", "val", "test"):
        part = prepared.part(name)
        rows = part.source_rows()
        for indices in (np.arange(part.num_rows), np.array([3, 0, 5])):
            targets = prepared.pipeline.transform_targets(part.gather(indices).targets)
            assert targets.dtype == torch.float32
            expected = [[float(label in labels[rows[i]]) for label in "abc"] for i in indices]
            assert targets.tolist() == expected
        counts = {label: sum(label in labels[row] for row in rows) for label in "abc"}
        assert manifest.class_counts[name] == counts
    with pytest.raises(SourceError, match=r"stratified.*one class per row"):
        _prepare(tmp_path, _section(tmp_path, target="tags", split={"kind": "stratified"}))


def test_equal_rows_with_lists_of_labels_are_dropped(tmp_path: Path) -> None:
    rows = {"x": [1.0, 1.0, 1.0, 2.0] * 10, "tags": [[1, 2], [1, 2], [3], [1, 2]] * 10}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    split = {"train": 0.34, "val": 0.33, "test": 0.33}
    clean = [{"kind": "drop_nulls"}, {"kind": "drop_duplicates"}]
    manifest = _prepare(tmp_path, _section(tmp_path, target="tags", split=split, clean=clean)).manifest
    assert sum(manifest.rows.values()) == 3


def test_augmentation_builds_nothing_anew(tmp_path: Path) -> None:
    section = {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"}
    plain = _prepare(tmp_path, DataSection.model_validate(section))
    changed = _prepare(tmp_path, DataSection.model_validate(section | {"augment": [{"kind": "flip"}]}))
    assert changed.folder == plain.folder
    text = DataSection.model_validate(section | {"image": {"size": [9, 9]}})
    assert _prepare(tmp_path, text).folder != plain.folder
