from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.records import Progress, Verdict
from orchestrator.runs.folder import Beat, RunFolder, RunRecord, create_run, find_run, list_runs
from orchestrator.storage import Folder


def made(storage: Folder, name: str) -> RunFolder:
    run = create_run(storage, name)
    run.write_record(RunRecord(run.name, run.number))
    return run


def test_runs_are_numbered_per_name_and_sorted_as_numbers(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path)
    for _ in range(11):
        made(storage, "digits")
    made(storage, "digits-3")  # a job's name may itself look like a run
    assert [run.label for run in list_runs(storage, "digits")] == [f"digits-{n}" for n in range(1, 12)]
    assert [run.label for run in list_runs(storage, "digits-3")] == ["digits-3-1"]
    assert [run.label for run in list_runs(storage)][-1] == "digits-3-1"


def test_simultaneous_drivers_get_different_numbers(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path / "runs")
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: create_run(storage, "digits").number, range(24)))
    assert sorted(numbers) == list(range(1, 25))


def test_half_made_and_foreign_folders_do_not_break_listing(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path)
    whole = made(storage, "digits")
    create_run(storage, "digits")  # the driver died before run.json
    damaged = made(storage, "digits")
    (damaged.folder.local_path() / "run.json").write_text("{")
    (made(storage, "digits").folder.local_path() / "run.json").write_text("[]")
    (tmp_path / "prepared").mkdir()
    (tmp_path / "digits-007").mkdir()
    (tmp_path / "digits-9").write_text("a file")
    assert list_runs(storage) == [whole]
    assert create_run(storage, "digits").number == 10


def test_nothing_is_listed_where_there_is_no_storage(tmp_path: Path) -> None:
    assert list_runs(Folder.at(tmp_path / "absent")) == []
    with pytest.raises(UsageError, match="there are no runs"):
        find_run(Folder.at(tmp_path / "absent"), "digits")


def test_storage_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        create_run(Folder.at(tmp_path / "file" / "runs"), "digits")


def test_a_run_is_found_by_label_and_by_name(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path)
    first, second = made(storage, "digits"), made(storage, "digits")
    assert find_run(storage, "digits-1") == first
    assert find_run(storage, "digits") == second
    with pytest.raises(UsageError, match="known runs: digits-1, digits-2"):
        find_run(storage, "digit")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    run = made(Folder.at(tmp_path), "digits")
    assert (run.read_verdict(), run.read_beat(), run.read_result(), run.read_spec()) == (
        None,
        None,
        None,
        None,
    )
    verdict = Verdict("FAILED", 1, "no memory", "out of memory", 1, "buy some", {"test/loss": 0.5})
    pulse = Beat(1.5, "host", 7, 2, attempt=3, progress=Progress(1, 2, 3, 4, val_loss=float("inf")))
    run.write_verdict(verdict)
    run.write_beat(pulse)
    run.write_result({"metrics": {"test/loss": 0.5}})
    run.write_spec("name: digits\n")
    run.update_record(mlflow_run_id="abc", attempts=2)
    assert run.read_verdict() == verdict
    assert run.read_beat() == pulse
    assert run.read_result() == {"metrics": {"test/loss": 0.5}}
    assert run.read_spec() == "name: digits\n"
    assert run.read_record() == RunRecord("digits", 1, mlflow_run_id="abc", attempts=2)


def test_keys_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    run = made(Folder.at(tmp_path), "digits")
    run.folder.write_json("run.json", {"name": "digits", "number": 1, "novelty": True})
    assert run.read_record() == RunRecord("digits", 1)
