"""A search's events on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.runners.search import journal as module
from orchestrator.runners.search.journal import Journal
from orchestrator.storage import Folder


def test_events_come_back_in_their_order(tmp_path: Path) -> None:
    journal = Journal(Folder.at(tmp_path / "search"))
    assert journal.events() == []
    events = [{"event": "report", "epoch": epoch, "value": 0.1 * epoch} for epoch in range(10)]
    for event in events:
        journal.append(event)
    assert journal.events() == events
    assert Journal(Folder.at(tmp_path / "search")).events() == []
    journal.flush()
    assert Journal(Folder.at(tmp_path / "search")).events() == events


def test_what_was_not_flushed_is_lost_and_the_rest_is_whole(tmp_path: Path) -> None:
    journal = Journal(Folder.at(tmp_path))
    journal.append({"number": 1})
    journal.flush()
    journal.append({"number": 2})
    again = Journal(Folder.at(tmp_path))
    again.append({"number": 3})
    again.flush()
    assert Journal(Folder.at(tmp_path)).events() == [{"number": 1}, {"number": 3}]


def test_a_driver_that_was_believed_dead_changes_nothing(tmp_path: Path) -> None:
    """It was frozen, and writes what it still had to write when another one has gone on."""
    frozen = Journal(Folder.at(tmp_path))
    for number in (1, 2):
        frozen.append({"number": number})
    frozen.flush()
    frozen.append({"number": "late"})
    newer = Journal(Folder.at(tmp_path))
    newer.append({"number": 3})
    newer.flush()
    frozen.flush()
    newer.append({"number": 4})
    newer.flush()
    assert [event["number"] for event in Journal(Folder.at(tmp_path)).events()] == [1, 2, 3, 4]


def test_one_driver_after_the_other_goes_on(tmp_path: Path) -> None:
    for number in range(5):
        journal = Journal(Folder.at(tmp_path))
        assert journal.events() == [{"number": before} for before in range(number)]
        journal.append({"number": number})
        journal.flush()
    Journal(Folder.at(tmp_path)).flush()  # it had nothing to say
    assert len(Journal(Folder.at(tmp_path)).events()) == 5


def test_a_long_search_has_many_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 200)
    events = [{"number": number} for number in range(100)]
    for event in events:
        journal = Journal(Folder.at(tmp_path)) if event["number"] % 7 == 0 else journal  # noqa: F821
        journal.append(event)
        journal.flush()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:2] == ["events-0001-000001.jsonl", "events-0002-000001.jsonl"]
    assert len(names) > 5
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 250
    assert Journal(Folder.at(tmp_path)).events() == events == journal.events()


def test_nothing_to_write_writes_nothing(tmp_path: Path) -> None:
    journal = Journal(Folder.at(tmp_path))
    journal.append({"number": 1})
    journal.flush()
    file = tmp_path / "events-0001-000001.jsonl"
    file.unlink()
    journal.flush()
    assert not file.exists()
