from __future__ import annotations

import errno
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import UsageError
from orchestrator.records import Verdict
from orchestrator.runs.choose import Choice
from orchestrator.runs.claim import holds, live_claim, release_claim, take_claim
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.heartbeat import is_alive
from orchestrator.runs.process import process_start
from orchestrator.storage import Folder
from tests.unit.runs_helpers import beat, identity_of, kill, make_spec, rewrite_claim, start

DONE = Verdict("SUCCEEDED", 0, "done")
STOPPED = Verdict("STOPPED", 143, "stopped")


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "runs")


def end(choice: Choice, verdict: Verdict) -> None:
    choice.run.write_verdict(verdict)
    release_claim(choice.run, choice.claim)


def test_the_first_run_starts_at_one_and_is_recorded(storage: Folder) -> None:
    choice = start(storage)
    record = choice.run.read_record()
    assert (choice.run.label, choice.resumed) == ("digits-1", False)
    assert record is not None
    assert record.identity == identity_of(make_spec()).to_dict()
    assert (record.max_epochs, record.max_steps) == (5, None)


def test_an_unfinished_run_is_resumed_and_its_ending_forgotten(storage: Folder) -> None:
    first = start(storage)
    first.run.request_stop()
    end(first, STOPPED)
    again = start(storage)
    assert (again.run, again.resumed) == (first.run, True)
    assert "unfinished" in again.why
    assert "broken off" not in again.why
    assert again.run.read_verdict() is None
    assert not again.run.stop_requested()


@pytest.mark.parametrize("verdict", [DONE, STOPPED])
def test_a_finished_run_or_another_identity_gets_the_next_number(storage: Folder, verdict: Verdict) -> None:
    end(start(storage), verdict)
    other = start(storage, make_spec(seed=0 if verdict is DONE else 1))
    assert (other.run.number, other.resumed) == (2, False)


def test_the_newest_unfinished_run_is_taken_past_finished_ones(storage: Folder) -> None:
    end(start(storage), STOPPED)
    end(start(storage, fresh=True), STOPPED)
    end(start(storage, fresh=True), DONE)
    end(start(storage, make_spec(seed=1)), STOPPED)
    assert start(storage).run.number == 2


@pytest.mark.parametrize(
    ("before", "after", "resumed"),
    [
        ({"max_epochs": 5}, {"max_epochs": 6}, True),
        ({"max_epochs": 5}, {"max_epochs": 4}, False),
        ({"max_epochs": 5, "max_steps": 10}, {"max_epochs": 5}, True),
        ({"max_epochs": 5}, {"max_epochs": 5, "max_steps": 10}, False),
        ({"max_epochs": 5, "max_steps": 10}, {"max_epochs": 5, "max_steps": 11}, True),
    ],
)
def test_a_shorter_plan_does_not_match(storage: Folder, before: dict, after: dict, resumed: bool) -> None:
    end(start(storage, make_spec(train=before)), STOPPED)
    choice = start(storage, make_spec(train=after))
    record = choice.run.read_record()
    assert choice.resumed is resumed
    assert record is not None
    assert (record.max_epochs, record.max_steps) == (after["max_epochs"], after.get("max_steps"))


@pytest.mark.parametrize("text", ["digits-1", "1"])
def test_resume_names_a_run(storage: Folder, text: str) -> None:
    end(start(storage), STOPPED)
    end(start(storage, fresh=True), STOPPED)
    choice = start(storage, resume=text)
    assert (choice.run.number, choice.resumed) == (1, True)


def test_resume_refuses_another_identity_and_shows_the_difference(storage: Folder) -> None:
    choice = start(storage)
    choice.run.write_spec(yaml.safe_dump(make_spec().model_dump(mode="json")))
    end(choice, STOPPED)
    with pytest.raises(UsageError, match="seed: 0 → 4"):
        start(storage, make_spec(seed=4), resume="digits-1")
    assert choice.run.read_verdict() == STOPPED


def test_resume_goes_on_with_a_finished_run_only_for_longer(storage: Folder) -> None:
    end(start(storage), DONE)
    with pytest.raises(UsageError, match=r"digits-1 is finished. raise train.max_epochs"):
        start(storage, resume="1")
    with pytest.raises(UsageError, match="planned for 5 epochs"):
        start(storage, make_spec(train={"max_epochs": 4}), resume="1")
    longer = start(storage, make_spec(train={"max_epochs": 8}), resume="1")
    assert longer.resumed
    assert longer.run.read_verdict() is None


def test_unknown_and_contradicting_wishes_are_refused(storage: Folder) -> None:
    end(start(storage), STOPPED)
    with pytest.raises(UsageError, match="known runs: digits-1"):
        start(storage, resume="other-1")
    with pytest.raises(UsageError, match="exclude each other"):
        start(storage, resume="1", fresh=True)


def test_a_live_run_is_refused_with_its_holder_and_a_hint(storage: Folder) -> None:
    choice = start(storage)
    for options in ({}, {"resume": "digits-1"}):
        with pytest.raises(UsageError, match=f"{socket.gethostname()}, process .* since .*--fresh"):
            start(storage, **options)
    assert start(storage, fresh=True).run.number == 2
    kill(choice.run)
    again = start(storage, resume="1")
    assert again.resumed
    assert "broken off" in again.why


def test_on_its_own_machine_the_very_process_tells(storage: Folder) -> None:
    run = start(storage).run
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        rewrite_claim(run, pid=other.pid, start=process_start(other.pid))
        for ago_s in (0.0, 3600.0, -3600.0):
            beat(run, ago_s=ago_s)
            assert live_claim(run, time.time()) is not None
        rewrite_claim(run, start="12345")  # the number belongs to another process now
        beat(run)
        assert live_claim(run, time.time()) is None
        rewrite_claim(run, start=process_start(other.pid))
        other.communicate(b"\n")
    assert live_claim(run, time.time()) is None
    assert not is_alive(run, time.time())


def test_a_claim_that_this_process_no_longer_holds_is_free(storage: Folder) -> None:
    choice = start(storage)
    release_claim(choice.run, choice.claim)
    rewrite_claim(choice.run, released=False)  # as if the storage had not taken it
    assert start(storage).run == choice.run


def test_a_claim_being_written_counts_as_alive_and_gets_old(storage: Folder) -> None:
    run = start(storage).run
    kill(run)
    (run.claims / "2").create()
    now_s = time.time()
    assert take_claim(run, now_s) is None
    later = take_claim(run, now_s + 60, sleep=lambda seconds: None)
    assert later is not None
    assert later.number == 3


def test_a_claim_that_cannot_be_written_is_taken_back(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = start(storage)
    release_claim(choice.run, choice.claim)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_json", _full_disk)
        with pytest.raises(UsageError, match="No space left on device"):
            start(storage)
    assert start(storage).run == choice.run


def test_a_record_that_cannot_be_read_is_not_written_anew(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = start(storage)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read_bytes", _gone)
        with pytest.raises(OSError, match="Input/output error"):
            choice.run.update_record(attempts=3)
    record = choice.run.read_record()
    assert record is not None
    assert record.identity == identity_of(make_spec()).to_dict()


def test_a_run_whose_record_cannot_be_written_can_be_resumed_later(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(start(storage), STOPPED)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_record", _full_disk)
        with pytest.raises(UsageError, match="No space left on device"):
            start(storage)
    assert start(storage).run.number == 1


def _full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _gone(*args: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_of_many_drivers_only_one_takes_over_a_dead_run(storage: Folder) -> None:
    first = start(storage)
    kill(first.run)
    barrier, claims = threading.Barrier(8), []

    def drive() -> None:
        barrier.wait()
        claims.append(take_claim(first.run, time.time()))

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [claim for claim in claims if claim is not None]
    assert live_claim(first.run, time.time()) == winner
    assert holds(first.run, winner)
    (first.run.claims / str(winner.number)).write_bytes("holder.json", b"")
    assert holds(first.run, winner)  # a file that cannot be read does not name another
    assert not holds(first.run, first.claim)  # the cut-off driver learns that it lost the run
