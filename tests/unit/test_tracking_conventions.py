"""Names, params and links as MLflow takes them. MLflow's own rules are restated here, not imported."""

import posixpath
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.tracking.conventions import (
    flatten_params,
    folder_digest,
    metric_key,
    source_tags,
    without_credentials,
)
from orchestrator.tracking.links import resolve_tracking_uri, run_link, sqlite_file, ui_base


def is_good_key(key: str) -> bool:
    normal = posixpath.normpath(key)
    return (
        bool(re.fullmatch(r"[/\w.\- :]+", key))
        and normal == key
        and normal != "."
        and not key.startswith(("/", ".."))
        and len(key) <= 250
    )


@pytest.mark.parametrize(
    "key", ["train/loss", "system/node-1/cpu %".replace(" %", ""), "a.b_c-d:e f", "best/val/f1"]
)
def test_good_keys_stay_as_they_are(key: str) -> None:
    assert is_good_key(key)
    assert metric_key(key) == key


@pytest.mark.parametrize(
    "key", ["a=b", "p@5", "x[0]", "/lead", "a//b", "..", "a/../b", "", ".", "./a", "a/", "x" * 300]
)
def test_bad_keys_become_good(key: str) -> None:
    assert not is_good_key(key)
    assert is_good_key(metric_key(key))


@given(st.text(alphabet=st.sampled_from("ab./ =@[]-:\n"), max_size=20) | st.text(max_size=300))
def test_any_text_becomes_a_good_key_and_stays_so(key: str) -> None:
    cleaned = metric_key(key)
    assert is_good_key(cleaned)
    assert metric_key(cleaned) == cleaned


def test_params_are_flat_text() -> None:
    spec = {
        "seed": 1,
        "train": {"lr": 0.1, "layers": [1, 2], "note": None, "steps": [{"kind": "x", "z": None}]},
        "name": "x",
        "empty": {},
    }
    assert flatten_params(spec) == {
        "seed": "1",
        "train.lr": "0.1",
        "train.layers": "[1, 2]",
        "train.steps": '[{"kind": "x"}]',
        "name": "x",
        "empty": "{}",
    }


def test_params_beyond_the_limit_fold_the_deepest_level() -> None:
    spec = {"a": {f"k{i}": {"x": i, "y": i} for i in range(30)}, "b": {"c": 1}}
    params = flatten_params(spec, limit=50)
    assert len(params) == 31
    assert params["a.k3"] == '{"x": 3, "y": 3}'
    assert params["b.c"] == "1"


def test_what_is_none_does_not_count_towards_the_limit() -> None:
    spec = {"a": {"x": 1, **{f"n{i}": None for i in range(5)}}}
    assert flatten_params(spec, limit=3) == {"a.x": "1"}


def test_long_params_are_cut_to_what_mlflow_keeps() -> None:
    assert len(flatten_params({"text": "x" * 7000})["text"]) == 6000


def test_source_tags_tell_commit_and_branch_without_credentials(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-b", "trunk")
    git("commit", "--allow-empty", "-m", "x")
    git("remote", "add", "origin", "https://me:secret@example.org/repo.git")
    tags = source_tags("jobs/digits.yaml", tmp_path)
    assert tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["mlflow.source.git.branch"] == "trunk"
    assert tags["mlflow.source.git.repoURL"] == "https://example.org/repo.git"
    assert tags["mlflow.source.name"] == "jobs/digits.yaml"
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.user"]


def test_source_tags_outside_a_repository(tmp_path: Path) -> None:
    tags = source_tags("x.yaml", tmp_path, job=True)
    assert set(tags) == {"mlflow.user", "mlflow.source.name", "mlflow.source.type"}
    assert tags["mlflow.source.type"] == "JOB"


def test_folder_digest_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = folder_digest(tmp_path)
    assert folder_digest(tmp_path) == first
    (tmp_path / "a").write_text("2")
    second = folder_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, folder_digest(tmp_path)}) == 3


def test_tracking_uri_default_lies_beside_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    expected = f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert resolve_tracking_uri(None, "./runs") == expected
    assert resolve_tracking_uri(None, str(tmp_path / "runs")) == expected
    assert sqlite_file(expected) == tmp_path.resolve() / "mlflow.db"


def test_tracking_uri_order_spec_environment_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    assert resolve_tracking_uri(None, "s3://bucket/runs") == "http://mlflow:5000"
    assert resolve_tracking_uri("sqlite:///x/mine.db", "runs") == f"sqlite:///{tmp_path.resolve()}/x/mine.db"
    assert resolve_tracking_uri("sqlite:////srv/mine.db", "runs") == "sqlite:////srv/mine.db"


@pytest.mark.parametrize(
    "uri", [None, "./mlruns", "file:///srv/mlruns", "postgresql://u:pw@db/mlflow", "sqlite:///"]
)
def test_unusable_tracking_uris_say_what_to_write(uri: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError) as caught:
        resolve_tracking_uri(uri, "s3://bucket/runs")
    assert caught.value.mend
    assert "pw" not in str(caught.value)


def test_links_open_the_training_view() -> None:
    assert ui_base("sqlite:////x/mlflow.db") == "http://127.0.0.1:5000"
    base = ui_base("https://me:pw@mlflow.example.org/prefix/")
    assert base == "https://mlflow.example.org/prefix"
    link = run_link(base, "3", "abc")
    assert link == "https://mlflow.example.org/prefix/#/experiments/3/runs/abc?workflowType=machine_learning"


def test_scp_style_addresses_have_no_credentials_to_hide() -> None:
    assert without_credentials("git@example.org:a/b.git") == "git@example.org:a/b.git"
