"""What the guides in docs/ show works: each YAML block is valid within a job spec, data can be prepared as it is
shown, and the functions run."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

import orchestrator
from orchestrator.data.augment.augment import check_augment
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.spec import LoadedSpec, load_spec
from orchestrator.spec.data import Augmentation, CleanStep, Source, Transform
from orchestrator.spec.data.split import SplitKind
from orchestrator.spec.tune import KINDS, Scheduler, SearchAlg
from orchestrator.storage import Folder

DOCS = Path(__file__).parents[2] / "docs"


def blocks(guide: str, language: str) -> list[str]:
    """The fenced blocks of a language, those inside lists too."""
    text = (DOCS / guide).read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


TRAINING, DATA, TUNE = (blocks(guide, "yaml") for guide in ("training.md", "data.md", "tune.md"))


def whole(snippet: str, default: dict[str, Any]) -> dict[str, Any]:
    """A job spec with the sections of the snippet, and what it lacks; `default` is its data."""
    sections: dict[str, Any] = yaml.safe_load(snippet)
    data = default | sections.get("data", {})
    if sections.get("train", {}).get("task") == "language_modeling":
        del data["target"]
    return {"name": "shown", "model": {"name": "mlp"}} | sections | {"data": data}


def training_job(snippet: str) -> dict[str, Any]:
    return whole(snippet, {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"})


def data_job(snippet: str) -> dict[str, Any]:
    """Where the snippet has no source of its own, that of the guide's first one; all of it where it cleans nothing."""
    first, data = yaml.safe_load(DATA[0])["data"], yaml.safe_load(snippet).get("data", {})
    return whole(snippet, {"target": first["target"]} if "source" in data else first)


def named(snippet: str) -> str:
    return " ".join(snippet.split()[:4])


def test_there_are_snippets() -> None:
    assert len(TRAINING) >= 10
    assert len(DATA) >= 15
    assert len(TUNE) >= 6
    assert len(blocks("training.md", "python")) == len(blocks("data.md", "python")) == 1


@pytest.mark.parametrize("snippet", TRAINING + TUNE, ids=named)
def test_a_yaml_block_about_training_is_valid(snippet: str) -> None:
    load_spec(training_job(snippet))


def test_every_kind_of_search_is_in_the_guide() -> None:
    text = (DOCS / "tune.md").read_text(encoding="utf-8")
    kinds = {kind for union in (SearchAlg, Scheduler) for kind in _kinds(union)} | set(KINDS)
    assert len(kinds) > 15
    assert not {kind for kind in kinds if f"`{kind}`" not in text and f"`{kind}: " not in text}


def test_the_train_function_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_loop.py").write_text(blocks("training.md", "python")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    snippet = next(text for text in TRAINING if "my_loop:fit" in text)
    spec = training_job(snippet) | {"storage": str(tmp_path / "runs")}
    try:
        result = orchestrator.run(spec, inline=True, quiet=True)
    finally:
        sys.modules.pop("my_loop", None)
    assert result.status == "SUCCEEDED", result.verdict
    assert result.metrics["test/accuracy"] > 0.8
    assert result.model is not None


def test_every_kind_of_data_is_in_the_guide() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    kinds = {kind for union in (Source, CleanStep, Transform, Augmentation) for kind in _kinds(union)}
    kinds |= set(get_args(SplitKind))
    assert len(kinds) > 40
    assert not {kind for kind in kinds if f"`{kind}`" not in text and f"kind: {kind}" not in text}


def _kinds(union: Any) -> list[str]:
    """The values of `kind` of all sections of a union."""
    sections = get_args(get_args(union)[0])
    found = [get_args(section.model_fields["kind"].annotation)[0] for section in sections]
    return [kind for nested in found for kind in ([nested] if isinstance(nested, str) else nested)]


@pytest.fixture(scope="module")
def shown_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data sets of the names that docs/data.md uses."""
    folder = tmp_path_factory.mktemp("shown")
    rng = np.random.default_rng(0)
    (folder / "visits").mkdir()
    for month in ("2024-01", "2024-02"):
        lines = ["customer,day,age,fare,city,card,churned"]
        for row in range(200):
            city, card = rng.choice(["Berlin", "Rome", "Paris", ""]), rng.choice(["gold", "silver"])
            age = rng.integers(18, 90) if row % 20 else ""
            moment, fare = f"{month}-{row % 28 + 1:02} 12:00:00", rng.lognormal(3)
            lines.append(
                f"{rng.integers(50)},{moment},{age},{fare:.2f},{city},{card},{'yes' if row % 3 else 'no'}"
            )
        (folder / "visits" / f"{month}.csv").write_text("\n".join(lines), encoding="utf-8")
    _paint_pets(folder / "pets", rng)
    reviews = [
        {"review": f"{'good' if row % 2 else 'bad'} soup, table {row}", "stars": row % 2} for row in range(99)
    ]
    (folder / "reviews.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in reviews) + "{", encoding="utf-8"
    )
    (folder / "my_rows.py").write_text(blocks("data.md", "python")[0], encoding="utf-8")
    return folder


def _paint_pets(folder: Path, rng: np.random.Generator) -> None:
    """Images of cats and dogs in train and test, one of them damaged."""
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cats", "dogs"):
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(20):
                pixels = rng.integers(0, 255, (28, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    (folder / "train" / "cats" / "20.png").write_bytes(b"no image")


@pytest.mark.parametrize("snippet", DATA, ids=named)
def test_data_is_prepared_as_shown(
    snippet: str, shown_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "hush")
    monkeypatch.chdir(shown_data)
    monkeypatch.syspath_prepend(str(shown_data))
    spec = load_spec(data_job(snippet))
    source = spec.spec.data.source
    if "://" in getattr(source, "path", getattr(source, "url", "")):
        return  # a server that is not there: valid is all that it can be
    if "bpe" in snippet and importlib.util.find_spec("tokenizers") is None:
        pytest.skip("the extra 'text' is not installed")
    try:
        found = prepared(spec, tmp_path)
    finally:
        sys.modules.pop("my_rows", None)
    assert found.part("train").num_rows > 0
    check_augment(spec.spec.data.augment, found.manifest.input_shape, vocab_size=found.manifest.vocab_size)
    written = {file.name for file in found.folder.iterdir()}
    assert {"manifest.json", "example.arrow", "quality.html", "quality.json"} <= written
    assert ("corrupt.csv" in written) == ("max_corrupt_share" in snippet)


def prepared(loaded: LoadedSpec, storage: Path) -> Prepared:
    spec = loaded.spec
    return prepare(spec.data, task=spec.train.task, seed=spec.seed, storage=Folder.at(storage))
