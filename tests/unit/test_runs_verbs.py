from __future__ import annotations

import json
import subprocess
import sys
import threading
import types
from dataclasses import asdict
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from orchestrator.cli.list import list_
from orchestrator.cli.logs import logs
from orchestrator.cli.options import find_address
from orchestrator.cli.status import status
from orchestrator.cli.stop import stop
from orchestrator.cli.wait import wait
from orchestrator.errors import UsageError
from orchestrator.records import Verdict
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.logs import follow_log
from orchestrator.storage import Folder
from tests.unit.runs_helpers import HALFWAY, beat, kill, start

DONE = Verdict("SUCCEEDED", 0, "5 epochs", metrics={"test/accuracy": 0.98})

app = typer.Typer()
for name, verb in {"list": list_, "status": status, "logs": logs, "stop": stop, "wait": wait}.items():
    app.command(name)(verb)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "ORCHESTRATOR_STORAGE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run at work: digits-1."""
    run = start(Folder.at(tmp_path)).run
    beat(run)
    return run


def call(*arguments: str, storage: Folder | None = None) -> Result:
    options = ["--storage", storage.path] if storage else []
    return CliRunner().invoke(app, [*arguments, *options], env={"COLUMNS": "200", "TERM": "dumb"})


def write_log(run: RunFolder, name: str, text: str, attempt: int = 1) -> None:
    folder = run.attempt_logs(attempt).create().local_path()
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(text)


def test_list_shows_every_run(run: RunFolder) -> None:
    second = start(run.storage, fresh=True).run
    second.write_verdict(DONE)
    third = start(run.storage, fresh=True).run
    kill(third)
    result = call("list", storage=run.storage)
    assert result.exit_code == 0
    header, *rows, note = [line.split() for line in result.output.splitlines()]
    assert header[:3] == ["NAME", "STATE", "EPOCH"]
    assert "resumes" in note
    assert [row[:2] for row in rows] == [
        ["digits-1", "RUNNING"],
        ["digits-2", "SUCCEEDED"],
        ["digits-3", "DEAD"],
    ]
    assert rows[0][2:5] == ["3/6", "120/240", "12s"]
    assert rows[1][-2:] == ["test/accuracy", "0.98"]
    listed = json.loads(call("list", "-o", "json", storage=run.storage).output)
    assert [item["name"] for item in listed] == ["digits-1", "digits-2", "digits-3"]
    assert listed[0]["progress"]["step"] == 120
    assert listed[1]["verdict"]["exit_code"] == 0


def test_list_of_nothing(tmp_path: Path) -> None:
    assert call("list", storage=Folder.at(tmp_path)).output == "no runs\n"
    assert json.loads(call("list", "-o", "json", storage=Folder.at(tmp_path)).output) == []


def test_status_of_the_newest_run_of_a_name(run: RunFolder) -> None:
    result = call("status", "digits", storage=run.storage)
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert (lines["run"], lines["state"]) == ("digits-1", "RUNNING")
    assert lines["progress"].startswith("epoch 3/6 · step 120/240")
    run.write_verdict(DONE)
    assert "SUCCEEDED digits-1 (exit 0): 5 epochs" in call("status", "digits-1", storage=run.storage).output


def test_status_names_the_newest_postmortem(run: RunFolder) -> None:
    assert "post-mortem" not in call("status", "digits", storage=run.storage).output
    for attempt in (2, 10):
        run.postmortem(attempt).create()
    write_log(run, "driver.log", "still at work\n", attempt=11)
    lines = dict(
        line.split(maxsplit=1) for line in call("status", "digits", storage=run.storage).output.splitlines()
    )
    assert lines["post-mortem"] == run.postmortem(10).path
    told = json.loads(call("status", "digits", "-o", "json", storage=run.storage).output)
    assert told["postmortem"] == run.postmortem(10).path
    missing = call("logs", "digits", "--rank", "7", "--attempt", "10", storage=run.storage).exception
    assert "postmortem" not in str(missing)


def test_json_has_no_nan(run: RunFolder) -> None:
    run.write_verdict(Verdict("FAILED", 1, "diverged", metrics={"test/loss": float("nan")}))
    told = json.loads(call("status", "digits", "-o", "json", storage=run.storage).output)
    assert told["metrics"] == {"test/loss": None}


@pytest.mark.parametrize("verb", ["status", "logs", "stop", "wait"])
def test_unknown_names_are_usage_errors_with_the_known_ones(run: RunFolder, verb: str) -> None:
    result = call(verb, "digit", storage=run.storage)
    assert isinstance(result.exception, UsageError)
    assert "known runs: digits-1" in str(result.exception)


def test_storage_comes_from_the_environment_or_is_here(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", run.storage.path)
    assert "digits-1" in call("list").output
    monkeypatch.delenv("ORCHESTRATOR_STORAGE")
    monkeypatch.chdir(run.storage.path)
    assert call("list").output == "no runs\n"  # ./runs is not there


def test_logs_of_driver_ranks_and_attempts(run: RunFolder) -> None:
    write_log(run, "rank-0.log", "rank 0 speaks for the driver\n")
    assert call("logs", "digits", storage=run.storage).output == "rank 0 speaks for the driver\n"
    write_log(run, "driver.log", "driver of 1\n")
    write_log(run, "driver.log", "driver of 10\n", attempt=10)
    write_log(run, "rank-1.log", "rank of 10\n", attempt=10)
    assert call("logs", "digits", storage=run.storage).output == "driver of 10\n"
    assert call("logs", "digits", "--attempt", "1", storage=run.storage).output == "driver of 1\n"
    assert call("logs", "digits", "--rank", "1", storage=run.storage).output == "rank of 10\n"
    missing = call("logs", "digits", "--rank", "7", storage=run.storage).exception
    assert isinstance(missing, UsageError)
    assert "attempt 10 (driver.log, rank-1.log)" in str(missing)


def test_logs_follow_until_the_run_has_ended(run: RunFolder) -> None:
    write_log(run, "driver.log", "one\n")
    read: list[str] = []
    first_read = threading.Event()

    def append() -> None:
        assert first_read.wait(20)
        write_log(run, "driver.log", "tw")
        write_log(run, "driver.log", "ø\n")
        write_log(run, "driver.log", "three\n", attempt=2)
        run.write_verdict(DONE)

    writer = threading.Thread(target=append)
    writer.start()
    for text in follow_log(
        run,
        None,
        None,
        has_ended=lambda: run.read_verdict() is not None,
        pause=lambda: first_read.wait(0.01) and None,
    ):
        read.append(text)
        first_read.set()
    writer.join()
    assert "".join(read) == "one\ntwø\nthree\n"


def test_logs_f_appends_as_the_thread_writes(run: RunFolder) -> None:
    write_log(run, "driver.log", "one\n")

    def append() -> None:
        write_log(run, "driver.log", "two\n")
        run.write_verdict(DONE)

    writer = threading.Timer(0.05, append)
    writer.start()
    result = call("logs", "digits", "-f", storage=run.storage)
    writer.join()
    assert (result.exit_code, result.output) == (0, "one\ntwo\n")


def test_a_followed_letter_may_come_in_two_pieces(run: RunFolder) -> None:
    path = run.attempt_logs(1).create().local_path() / "driver.log"
    path.write_bytes("é".encode()[:1])

    def rest() -> None:
        path.write_bytes("é".encode())
        run.write_verdict(DONE)

    pieces = follow_log(run, None, 1, has_ended=lambda: run.read_verdict() is not None, pause=rest)
    assert "".join(pieces) == "é"


def test_stop_asks_and_waits_for_the_verdict(run: RunFolder) -> None:
    answered = threading.Event()

    def drive() -> None:
        while not run.stop_requested():
            answered.wait(0.01)
        run.write_verdict(Verdict("STOPPED", 143, "stopped at step 130"))

    driver = threading.Thread(target=drive)
    driver.start()
    result = call("stop", "digits", storage=run.storage)
    driver.join()
    assert result.exit_code == 0
    assert "waiting up to 30s" in result.output
    assert "verdict: STOPPED digits-1 (exit 143): stopped at step 130" in result.output
    assert "digits-1 is not running: STOPPED" in call("stop", "digits-1", storage=run.storage).output


def test_stop_gives_up_after_the_runs_own_grace(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_spec("failure: {stop_grace: 0}\n")
    monkeypatch.setattr("orchestrator.runs.heartbeat.INTERVAL_S", 0.0)
    result = call("stop", "digits", storage=run.storage)
    assert result.exit_code == 1
    assert "has not ended yet" in result.output
    assert run.stop_requested()


@pytest.mark.parametrize("code", [0, 1, 75, 124, 143])
def test_wait_exits_as_the_run_did(run: RunFolder, code: int) -> None:
    run.write_verdict(Verdict("FAILED" if code else "SUCCEEDED", code, "so it is"))
    result = call("wait", "digits", storage=run.storage)
    assert result.exit_code == code
    assert f"(exit {code}): so it is" in result.output


def test_wait_gives_up_and_sees_death(run: RunFolder) -> None:
    result = call("wait", "digits", "--timeout", "0s", storage=run.storage)
    assert (result.exit_code, "digits-1 is still RUNNING" in result.output) == (124, True)
    assert call("wait", "digits", "--timeout", "soon", storage=run.storage).exit_code == 2
    kill(run)
    result = call("wait", "digits", storage=run.storage)
    assert (result.exit_code, "its driver died" in result.output) == (1, True)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_address(None) is None
    assert find_address("https://head:8265") == "https://head:8265"
    for bad in ("ray://head:10001", "head:6379"):
        with pytest.raises(UsageError, match="http://HEAD:8265"):
            find_address(bad)
    with pytest.raises(UsageError, match="exclude"):
        find_address("http://head:8265", "runs")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "http://ray:8265")
    assert find_address(None) == "http://ray:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://api:8265")
    assert find_address(None) == "http://api:8265"
    assert find_address(None, "runs") is None


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """`runners.jobs` replaced by one that notes its calls."""
    calls: list[tuple[object, ...]] = []
    job = {
        "name": "digits-x1", "job_id": "digits-x1", "state": "RUNNING", "run": "digits-4", "metrics": {},
        "progress": asdict(HALFWAY),
        "eta_s": 12.0, "verdict": None, "exit_code": None, "reason": "", "started_s": 1.7e9,
        "duration_s": 3.0,
    }  # fmt: skip

    def wait_job(*arguments: object) -> int:
        if arguments[-1] == 60.0:
            raise TimeoutError("job has not ended")
        return 75

    fake = types.SimpleNamespace(
        list_jobs=lambda address: [job],
        job_status=lambda address, job_id: job,
        follow_logs=lambda *arguments: (calls.append(arguments), iter(["one\n", "two\n"]))[1],
        stop_job=lambda *arguments: calls.append(arguments),
        wait_job=wait_job,
    )
    monkeypatch.setitem(sys.modules, "orchestrator.runners.submission.jobs", fake)
    monkeypatch.setattr("orchestrator.runners.submission.jobs", fake, raising=False)
    return calls


def test_with_an_address_the_verbs_work_on_jobs(jobs: list[tuple[object, ...]]) -> None:
    at = ("--address", "http://head:8265")
    assert call("list", *at).output.splitlines()[1].split()[:3] == ["digits-x1", "RUNNING", "3/6"]
    assert json.loads(call("list", *at, "-o", "json").output)[0]["progress"]["epoch"] == 3
    assert "digits-4" in call("status", "digits-x1", *at).output
    assert call("logs", "digits-x1", "-f", *at).output == "one\ntwo\n"
    assert call("stop", "digits-x1", *at).exit_code == 0
    assert jobs == [("http://head:8265", "digits-x1", True), ("http://head:8265", "digits-x1")]
    assert call("wait", "digits-x1", *at).exit_code == 75
    assert call("wait", "digits-x1", "--timeout", "1m", *at).exit_code == 124
    assert isinstance(call("logs", "digits-x1", "--rank", "1", *at).exception, UsageError)


@pytest.mark.parametrize("verb", ["list", "status", "logs", "stop", "wait"])
def test_every_help_has_an_example(verb: str) -> None:
    assert f"orchestrator {verb}" in call(verb, "--help").output


def test_the_verbs_import_nothing_heavy() -> None:
    code = (
        "import sys; from orchestrator.cli import list, status, logs, stop, wait; "
        "print({'torch', 'ray', 'mlflow', 'pyarrow', 'rich.table', 'psutil'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
