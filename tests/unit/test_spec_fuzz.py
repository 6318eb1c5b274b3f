"""Broken specs by the thousand: each must be refused in words, with exit code 2, and never by accident."""

from __future__ import annotations

import copy
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import load_spec, to_plain
from orchestrator.spec.document import parse
from tests.unit.spec_helpers import FULL_YAML, MINIMAL, minimal

WRONG_VALUES: list[Any] = [
    None, True, "", "wrong value", "3", -1, 0, 0.5, 10**18, 10**30, -1e308, math.nan, math.inf, [], {}, [[]],
    [None], {"a": {}}, ["x", 1], "\0", "\ud800", "${env:NOT_THERE_AT_ALL}", "${env:", "x" * 10_000, b"bytes",
    object(),
]  # fmt: skip
OVERRIDES = [
    "", "=", "=3", "train", "train=", "train=3", "train.=3", ".train=3", "train..lr=1", "name.x=1",
    "seed.x.y=1", "data.clean.x.kind=1", "data.clean.-1=1", "data.clean.99=1", "data.clean.0.0.0=1",
    "data.source=[", "seed={a", "seed='", 'seed="\\U99999999"', "seed=.nan", "seed=1e400",
    "seed=99999999999999999999", "seed=[1, 2]", "seed=yes", "model={name: cnn, name: mlp}",
    "train.max_epochs=${env:NOT_THERE_AT_ALL}", "train.max_epochs=${env:", "nme=x",
    "train.optimizer.kind=adamv", "train.optimizer.lr=-1", "resources.num_workers=0", "train.max_epoch=1",
    "data=null", "seed=" + "[" * 60, "seed=!!python/object:os.system x", "secrets.x-y=z", "secrets=[1]",
    "data.image.size=[1]", "data.split.train=0.99", "\ud800=1", "seed=\ud800", "a.b.c.d.e.f=1",
    "train.metrics.0=", "checkpoint=[]",
]  # fmt: skip
SNIPPETS = [
    "\t", "\x00", "\x07", "[", "]", "{", "}", ":", ": ", "- ", "&a ", "*a", "!", "!!x ", "|", ">", "'", '"',
    "%", "@", "`", "\n", "\n---\n", "\n...\n", "? ", "<<: ", "#", "\\", "\ud7ff", "\U0001f600", "\xa0",
    "\ufeff", "\u2028", ",", "0x", "1e999", "${env:", "a" * 2000, "[" * 100, "\n" + " " * 60 + "x:",
]  # fmt: skip


def refused(source: Any, overrides: list[str] | None = None) -> bool:
    """False where the spec is valid after all. Anything but a proper refusal fails the test."""
    error = refusal(source, overrides or [])
    if error is None:
        return False
    assert error.exit_code == 2
    assert str(error).strip()
    assert "Traceback" not in str(error)
    assert error.faults
    for fault in error.faults:
        assert fault.reason.strip()
        assert fault.field or fault.line, f"names neither field nor line: {fault}"
    return True


def refusal(source: Any, overrides: list[str]) -> SpecError | None:
    try:
        load_spec(source, overrides)
    except SpecError as error:
        return error
    return None


def full() -> dict[str, Any]:
    """A valid spec in which every field of every section stands."""
    return to_plain(load_spec(parse(FULL_YAML, "full")[0].values).spec, with_secrets=True)


def paths_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_in(item, (*path, key))


def inside(value: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def put(document: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    inside(document, path[:-1])[path[-1]] = value
    return document


def test_the_full_spec_is_valid() -> None:
    assert not refused(full())
    assert not refused(MINIMAL)


def test_wrong_values_at_every_field() -> None:
    document = full()
    count = sum(refused(put(document, path, wrong)) for path in paths_in(document) for wrong in WRONG_VALUES)
    assert count >= 1000


def test_unknown_keys_missing_keys_and_swapped_sections_everywhere() -> None:
    document = full()
    paths = list(paths_in(document))
    sections = [path for path in paths if isinstance(inside(document, path), dict)]
    free = {("tags",), ("model", "args"), ("runtime_env", "env_vars"), ("secrets",)}
    count = 0
    for path in sections:
        for key in (
            "kindd",
            "max_epoch",
            "lr",
            "",
            "Kind",
            "x" * 200,
            "a b",
            "${env:X}",
            "ключ",
            "__class__",
            "\0",
        ):
            found = refused(put(document, (*path, key), [{}]))
            assert found or path in free or path[:2] == ("model", "args")
            count += found
    for path in paths:
        if isinstance(path[-1], str):
            broken = copy.deepcopy(document)
            del inside(broken, path[:-1])[path[-1]]
            count += refused(broken)
    rng = random.Random(1)
    for _ in range(300):
        one, other = rng.sample(paths, 2)
        count += refused(put(document, one, copy.deepcopy(inside(document, other))))
    assert count >= 400


def test_broken_text(tmp_path: Path) -> None:
    rng = random.Random(2)
    short = FULL_YAML.partition("train:\n")[0]
    file = tmp_path / "job.yaml"
    file.write_text(short)
    assert not refused(file)
    count = 0
    for _ in range(300):
        lines = short.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 1:
                lines[at] = " " * rng.randint(1, 5) + lines[at]
            case 2:
                del lines[at]
            case 3:
                lines = list("".join(lines)[: rng.randrange(len(short))])
            case _:
                column = rng.randrange(len(lines[at]))
                lines[at] = lines[at][:column] + rng.choice(SNIPPETS) + lines[at][column:]
        file.write_text("".join(lines), encoding="utf-8")
        count += refused(file)
    assert count >= 180


def test_broken_bytes(tmp_path: Path) -> None:
    rng = random.Random(3)
    yaml_bytes = FULL_YAML.encode()
    file = tmp_path / "job.yaml"
    count = 0
    for size in range(120):
        data = bytearray(yaml_bytes if size % 2 else rng.randbytes(size))
        for _ in range(5 if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data)
        count += refused(file)
    assert count >= 100


@pytest.mark.parametrize("override", OVERRIDES)
def test_bad_overrides(override: str) -> None:
    document = full()
    assert refused(document, [override]) or override == "train.metrics.0="
    assert refused(minimal(), [override, "nonsense"])


def test_bad_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    document = full()
    texts = [path for path in paths_in(document) if not isinstance(inside(document, path), dict | list)]
    for value in ("", "${env:HOME}", "\udcff\udcfe", "9" * 400, "- [", "null", "1e999"):
        monkeypatch.setenv("JOB_TEST_FUZZ", value)
        for path in texts:
            refused(put(document, path, "${env:JOB_TEST_FUZZ}"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*full()]), values, min_size=1),
    st.lists(st.text(max_size=20), max_size=3),
)
def test_any_values_in_any_section(sections: dict[str, Any], overrides: list[str]) -> None:
    refused(minimal(**sections), overrides)
    assert refused({"data": {}, **sections, "x": 1}, overrides)


@pytest.mark.parametrize(
    "data",
    [
        b"name: [",
        FULL_YAML.replace("max_epochs", "max_epoch").encode(),
        b"\xff\xfe\x00broken",
        b"a: " + b"[" * 300,
        b"name: \"caf\\ud800\"\nnme: \xc3\xa9\n",
    ],
)  # fmt: skip
def test_through_the_command_line(data: bytes, tmp_path: Path) -> None:
    pytest.importorskip("orchestrator.__main__")
    file = tmp_path / "job.yaml"
    file.write_bytes(data)
    command = [sys.executable, "-m", "orchestrator", "validate", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert all(line.startswith(f"{file}:") for line in done.stderr.splitlines())
