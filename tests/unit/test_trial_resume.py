"""What a driver makes of the trials of one that was killed: the journal is the truth, their folders follow it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.files import Sink, write_file
from orchestrator.checkpoints.manifest import MANIFEST, STATE, Manifest, checkpoint_name, dump_manifest
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.errors import OrchestratorError
from orchestrator.runners.search import journal as journals
from orchestrator.runners.search.journal import Journal
from orchestrator.runners.search.search import handed_over
from orchestrator.runners.search.trial import HandOver, Trial
from orchestrator.runners.search.trial_runs import Setting, checkpoint_of, forget_unknown, give_checkpoint
from orchestrator.storage import Folder
from tests.unit.search_run_case import setting_in


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with setting_in(tmp_path) as setting:
        yield setting


def save(setting: Setting, trial_id: str, epoch: int, *, evaluated: bool = True, text: str = "") -> None:
    place = setting.run.trial(trial_id).checkpoints
    step = 10 * epoch + (0 if evaluated else 5)
    facts = write_file(
        place / checkpoint_name(step), STATE, functools.partial(_write, (text or trial_id).encode())
    )
    metrics = {"val/loss": 1 / epoch} if evaluated else {}
    manifest = Manifest(checkpoint_name(step), step, epoch, 1, 0.0, 1, metrics, {STATE: facts})
    write_file(place / manifest.name, MANIFEST, functools.partial(_write, dump_manifest(manifest)))


def _write(content: bytes, sink: Sink) -> None:
    sink.write(content)


def epochs(setting: Setting, trial_id: str) -> list[float]:
    manifests = CheckpointStore(setting.run.trial(trial_id).checkpoints).manifests()
    return [manifest.step / 10 for manifest in manifests]


def trial(number: int, epoch: int = 0, start_from: HandOver | None = None) -> Trial:
    return Trial(f"trial-{number:03d}", {}, {"train.optimizer.lr": 0.01}, epoch=epoch, start_from=start_from)


def test_a_trial_goes_back_behind_the_epochs_whose_reports_were_lost(setting: Setting) -> None:
    for epoch in (1, 2, 3):
        save(setting, "trial-001", epoch)
    save(setting, "trial-001", 2, evaluated=False)
    forget_unknown(setting, trial(1, epoch=2))
    assert epochs(setting, "trial-001") == [1, 2, 2.5]
    forget_unknown(setting, trial(1, epoch=0))
    assert epochs(setting, "trial-001") == []


def test_what_was_given_by_an_earlier_driver_stays_where_the_giver_went_on(setting: Setting) -> None:
    save(setting, "trial-001", 4)
    save(setting, "trial-002", 4)
    taker = trial(2, 4, HandOver("trial-001", 4))
    give_checkpoint(setting, taker)
    for manifest in CheckpointStore(setting.run.trial("trial-001").checkpoints).manifests():
        CheckpointStore(setting.run.trial("trial-001").checkpoints).discard(manifest.name)
    save(setting, "trial-001", 8)
    give_checkpoint(setting, taker)
    [manifest] = CheckpointStore(setting.run.trial("trial-002").checkpoints).manifests()
    assert CheckpointStore(setting.run.trial("trial-002").checkpoints).read(manifest, STATE) == b"trial-001"
    assert checkpoint_of(setting, HandOver("trial-001", 4)) is None
    with pytest.raises(OrchestratorError, match="no checkpoint of epoch 4"):
        give_checkpoint(setting, trial(3, 4, HandOver("trial-001", 4)))


def test_a_trial_that_began_after_a_hand_over_is_not_given_it_again() -> None:
    source = HandOver("trial-001", 4)
    trials = {f"trial-{number:03d}": trial(number, 4, source) for number in (2, 3)}
    events: list[dict[str, Any]] = [
        {"event": "started", "trial": "trial-002"},
        {"event": "exploited", "trial": "trial-002"},
        {"event": "exploited", "trial": "trial-003"},
        {"event": "started", "trial": "trial-002"},
        {"event": "report", "trial": "trial-002"},
        {"event": "search ended"},
    ]
    assert handed_over(trials, events) == {"trial-002": source}


def test_an_event_is_kept_while_the_storage_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 100)
    journal = Journal(Folder.at(tmp_path))
    write, events = Folder.write_bytes, [{"number": number} for number in range(30)]

    def away(*arguments: Any) -> None:
        raise OSError("the storage is away")

    for number, event in enumerate(events):
        monkeypatch.setattr(Folder, "write_bytes", away if 10 <= number < 20 else write)
        journal.append(event)
        if 10 <= number < 20:
            with pytest.raises(OSError, match="away"):
                journal.flush()
        else:
            journal.flush()
    assert journal.events() == events == Journal(Folder.at(tmp_path)).events()


def test_the_checkpoint_of_an_epoch_is_not_one_of_the_middle_of_the_next(setting: Setting) -> None:
    save(setting, "trial-001", 2)
    save(setting, "trial-001", 2, evaluated=False)
    save(setting, "trial-001", 3, evaluated=False)
    steps = [checkpoint_of(setting, HandOver("trial-001", epoch)) for epoch in (1, 2, 3)]
    assert [one and one.step for one in steps] == [None, 20, 35]
