"""The verbs of `orchestrator data`: what they print, as text and as JSON, and their exit codes."""

from __future__ import annotations

import gc
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.cli.app import run_app
from orchestrator.data.prepared.prepared import Prepared
from tests.test_layering import after_command

COLUMNS = "x,same,y\n" + "".join(f"{n % 17 / 4},1,{n % 23}\n" for n in range(200))
SPEC = """
name: small
storage: {storage}
data:
  source: {{kind: csv, path: {file}}}
  target: y
  transforms: [{{kind: standardize}}]
model: {{name: linear}}
train: {{max_epochs: 1, global_batch_size: 20, optimizer: {{kind: sgd, lr: 0.1}}}}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    (tmp_path / "rows.csv").write_text(COLUMNS)
    path = tmp_path / "job.yaml"
    path.write_text(SPEC.format(storage=tmp_path / "runs", file=tmp_path / "rows.csv"))
    return str(path)


class Call:
    """A command line, run: its exit code and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.code = run_app(["data", *arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def folders(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "runs" / "prepared").iterdir() if path.is_dir())


def test_prepare_says_what_there_is(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Call(capsys, "prepare", spec)
    assert (done.code, done.err) == (0, "")
    (folder,) = folders(tmp_path)
    for line in (
        f"key +{folder.name}",
        f"folder +{folder}",
        r"task +regression: input 2 \(table\), 1 output",
        r"rows read +200",
        r"train +140 rows in 1 shard",
        f"quality +{folder}/quality.html",
        r"warning: column 'same' holds one value in all 200 rows.*data.features: \[x\]",
        r"prepared in ",
    ):
        assert re.search(line, done.out), line
    again = Call(capsys, "prepare", spec, "-o", "json").json
    assert again["folder"] == str(folder)
    assert again["rows"] == {"train": 140, "val": 30, "test": 30}
    assert again["quality_page"] == str(folder / "quality.html")
    assert [warning["column"] for warning in again["warnings"] if warning["level"] == "warning"] == ["same"]
    assert again["bytes"] == Prepared.load(folder).manifest.total_bytes
    assert "pipeline" not in again


def test_prepare_with_overrides_and_what_user_code_prints(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talkative_reader.py").write_text(
        "def read():\n    print('reading')\n    return {'x': [0.5 * n for n in range(50)], 'y': list(range(50))}\n"
    )
    source = "data.source={kind: python, function: 'talkative_reader:read'}"
    done = Call(capsys, "prepare", spec, source, "-o", "json")
    assert done.json["rows_read"] == 50
    assert "reading" in done.err
    assert Call(capsys, "inspect", spec, source, "-o", "json").json["key"] == done.json["key"]


def test_prepare_refuses_what_no_run_would_find(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = Call(capsys, "prepare", spec, "data.cache=false")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: data.cache is false")


@pytest.mark.parametrize("verb", ["prepare", "inspect"])
def test_faults_of_the_spec_and_the_source(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    for overrides, message in (
        (["data.targt=y"], "data.targt: is not a known key"),
        (["data.source.path=nowhere.csv"], "nowhere.csv does not exist"),
    ):
        done = Call(capsys, verb, spec, *overrides)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
        assert "Traceback" not in done.err
    done = Call(capsys, verb, str(tmp_path / "absent.yaml"))
    assert done.code == 2
    assert "there is no such file" in done.err


def test_a_column_that_is_missing(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = Call(capsys, "prepare", spec, "data.target=z")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "'z'" in done.err


def test_inspect_lists_and_shows(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(tmp_path / "runs")]
    assert Call(capsys, "inspect", *storage).out == f"{tmp_path}/runs/prepared holds no prepared data\n"
    assert Call(capsys, "inspect", *storage, "-o", "json").json == []
    Call(capsys, "prepare", spec)
    Call(capsys, "prepare", spec, "seed=1")
    first, second = (path.name for path in folders(tmp_path))
    listed = Call(capsys, "inspect", *storage)
    assert {line.split()[0] for line in listed.out.splitlines()} == {"key", first[:12], second[:12]}
    entries = Call(capsys, "inspect", *storage, "-o", "json").json
    assert {entry["key"] for entry in entries} == {first, second}
    assert all(entry["complete"] and entry["rows"]["train"] == 140 for entry in entries)
    shown = Call(capsys, "inspect", first[:8], *storage)
    assert re.search(f"key +{first}", shown.out)
    assert "warning: column 'same'" in shown.out
    assert Call(capsys, "inspect", first[:8], *storage, "-o", "json").json["key"] == first


def test_inspect_by_the_spec(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Call(capsys, "inspect", spec, "seed=1")
    assert (done.code, done.out) == (2, "")
    assert f"nothing is prepared for {spec}: {tmp_path}/runs/prepared/" in done.err
    assert f"orchestrator data prepare {spec} seed=1" in done.err
    assert not (tmp_path / "runs").exists() or not folders(tmp_path)
    Call(capsys, "prepare", spec, "seed=1")
    assert Call(capsys, "inspect", spec).code == 2
    shown = Call(capsys, "inspect", spec, "seed=1")
    assert shown.code == 0
    assert str(folders(tmp_path)[0]) in shown.out
    elsewhere = Call(capsys, "inspect", spec, "seed=1", "--storage", str(tmp_path / "other"))
    assert (elsewhere.code, f"{tmp_path}/other/prepared/" in elsewhere.err) == (2, True)
    (tmp_path / "other").symlink_to(tmp_path / "runs")
    assert Call(capsys, "inspect", spec, "seed=1", "--storage", str(tmp_path / "other")).code == 0
    assert Call(capsys, "inspect", spec, "seed=1", "--cache").code == 2
    assert Call(capsys, "inspect", "3f2a", "seed=1").code == 2


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_keys_that_are_unknown_or_ambiguous(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    for number in range(2):
        (tmp_path / "runs" / "prepared" / f"abc{number}").mkdir(parents=True)
    (tmp_path / "runs" / "prepared" / "abc0.tmp-1-f00").mkdir()
    storage = ["--storage", str(tmp_path / "runs")]
    done = Call(capsys, verb, "abd", *storage)
    assert (done.code, done.out) == (2, "")
    assert "holds no prepared data whose key begins with 'abd'" in done.err
    done = Call(capsys, verb, "abc", *storage)
    assert done.code == 2
    assert "holds 2 kinds of prepared data" in done.err
    assert Call(capsys, verb, "abc0", *storage).code == 1  # the one that is not being built, and is not whole


@pytest.mark.parametrize("verb", ["inspect", "verify", "gc"])
def test_where_to_look(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    refused = Call(capsys, verb, "--cache", "--storage", str(tmp_path))
    assert (refused.code, refused.out) == (2, "")
    assert "--cache and --storage exclude each other" in refused.err
    for option in (["--cache"], ["--storage", str(tmp_path / "nowhere")], []):
        nothing = Call(capsys, verb, *option)
        assert nothing.code == 0
        assert nothing.out.endswith(("nothing to remove\n", "holds no prepared data\n"))
        assert Call(capsys, verb, *option, "-o", "json").json == []
    unknown = Call(capsys, verb, "--storage", "ftpx://somewhere/else")
    assert unknown.code == 2
    assert "cannot be opened" in unknown.err


def test_verify_finds_damage(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Call(capsys, "prepare", spec)
    Call(capsys, "prepare", spec, "seed=1")
    good, bad = folders(tmp_path)
    storage = ["--storage", str(tmp_path / "runs")]
    whole = Call(capsys, "verify", *storage)
    assert (whole.code, whole.err) == (0, "")
    assert sorted(whole.out.splitlines()) == [f"{good.name}: whole", f"{bad.name}: whole"]
    shard = bad / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[-60] ^= 1
    shard.write_bytes(content)
    (bad / "val-00000.arrow").unlink()
    found = Call(capsys, "verify", *storage)
    assert found.code == 1
    assert f"{good.name}: whole" in found.out
    assert f"{bad.name}: damaged\n" in found.out
    assert "  train-00000.arrow: its content is not what was written\n" in found.out
    assert "  val-00000.arrow: is missing\n" in found.out
    assert "prepares damaged data anew" in found.err
    as_json = Call(capsys, "verify", bad.name[:10], *storage, "-o", "json")
    assert as_json.code == 1
    assert [entry["key"] for entry in as_json.json] == [bad.name]
    assert len(as_json.json[0]["damage"]) == 2
    assert Call(capsys, "verify", good.name, *storage).code == 0
    assert Call(capsys, "prepare", spec).code == Call(capsys, "prepare", spec, "seed=1").code == 0
    assert Call(capsys, "verify", *storage).code == 0


def test_gc_removes_what_it_says(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Call(capsys, "prepare", spec)
    (old,) = folders(tmp_path)
    two_days_ago_s = time.time() - 2 * 86400
    os.utime(old / "manifest.json", (two_days_ago_s, two_days_ago_s))
    Call(capsys, "prepare", spec, "seed=1")
    (new,) = {*folders(tmp_path)} - {old}
    leftover = old.with_name(f"{old.name}.tmp-7-abc")
    leftover.mkdir()
    (leftover / "train-00000.arrow").write_bytes(b"x" * 1000)
    for path in (leftover / "train-00000.arrow", leftover):
        os.utime(path, (two_days_ago_s, two_days_ago_s))
    storage = ["--storage", str(tmp_path / "runs")]
    would = Call(capsys, "gc", "--dry-run", "--max-age", "1d", *storage)
    assert would.code == 0
    assert f"would remove {old.name} (" in would.out
    assert f"would remove {leftover.name} (1 kB)" in would.out
    assert "would be free" in would.out
    assert {*folders(tmp_path)} == {old, new, leftover}
    removed = Call(capsys, "gc", *storage, "-o", "json").json  # without limits leftovers alone
    assert [entry["key"] for entry in removed] == [leftover.name]
    assert {*folders(tmp_path)} == {old, new}
    done = Call(capsys, "gc", "--max-age", "1d", *storage)
    assert f"removed {old.name} (" in done.out
    assert folders(tmp_path) == [new]
    held = Prepared.load(new)
    assert Call(capsys, "gc", "--max-size", "1kB", *storage).out == "nothing to remove\n"
    assert held.part("train").gather(np.arange(3)).features.shape == (3, 2)
    del held
    gc.collect()
    assert f"removed {new.name}" in Call(capsys, "gc", "--max-size", "1kB", *storage).out
    assert folders(tmp_path) == []


def test_gc_refuses_what_is_no_size_or_duration(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--max-size", "much"), ("--max-age", "long")):
        done = Call(capsys, "gc", option, value)
        assert (done.code, done.out) == (2, "")
        assert option in done.err


@pytest.mark.parametrize("verb", ["", "prepare", "inspect", "verify", "gc"])
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    done = Call(capsys, *verb.split(), "--help")
    assert done.code == 0
    assert f"Example: orchestrator data {verb or 'prepare'}" in done.out


def test_help_is_light() -> None:
    assert after_command("data", "inspect", "--help") == []
