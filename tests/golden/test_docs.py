"""What docs/training.md shows works: each YAML block is valid within a job spec, and the train function runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import orchestrator
from orchestrator.spec import load_spec

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, those inside lists too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", TEXT, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


SNIPPETS = blocks("yaml")


def whole(snippet: str) -> dict[str, Any]:
    """A job spec with the sections of the snippet, and what it lacks."""
    sections: dict[str, Any] = yaml.safe_load(snippet)
    data = {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"} | sections.get("data", {})
    if sections.get("train", {}).get("task") == "language_modeling":
        del data["target"]
    return {"name": "shown", "model": {"name": "mlp"}} | sections | {"data": data}


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 10
    assert len(blocks("python")) == 1


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: " ".join(snippet.split()[:3]))
def test_a_yaml_block_is_valid(snippet: str) -> None:
    load_spec(whole(snippet))


def test_the_train_function_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_loop.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    snippet = next(text for text in SNIPPETS if "my_loop:fit" in text)
    spec = whole(snippet) | {"storage": str(tmp_path / "runs")}
    try:
        result = orchestrator.run(spec, inline=True, quiet=True)
    finally:
        sys.modules.pop("my_loop", None)
    assert result.status == "SUCCEEDED", result.verdict
    assert result.metrics["test/accuracy"] > 0.8
    assert result.model is not None
