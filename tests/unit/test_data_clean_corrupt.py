from __future__ import annotations

import csv
import pickle
from pathlib import Path

import pytest

from orchestrator.data.cleaning.corrupt import LISTED, CorruptLog, CorruptRecord, merge_logs
from orchestrator.errors import DataError


def _log(seen: int, *rows: int) -> CorruptLog:
    return CorruptLog.of(seen, [CorruptRecord(row, "a.csv", "2 fields, not 3") for row in rows])


@pytest.mark.parametrize(
    ("log", "allowed", "passes"),
    [
        (_log(10), 0.0, True),
        (_log(0), 0.0, True),
        (_log(10, 1), 0.0, False),
        (_log(10, 1), 0.1, True),
        (_log(10, 1, 2), 0.1, False),
        (_log(1, 0), 1.0, False),  # nothing would be left
        (_log(2, 0), 1.0, True),
    ],
)
def test_the_share_that_may_be_skipped(log: CorruptLog, allowed: float, passes: bool) -> None:
    if passes:
        log.require_share(allowed)
        return
    with pytest.raises(
        DataError, match=f"{log.count} of {log.seen} rows cannot be read, and data.max_corrupt_share"
    ):
        log.require_share(allowed, "rows")


def test_the_message_names_the_first_records() -> None:
    with pytest.raises(
        DataError, match=r"row 1 \(a.csv\): 2 fields, not 3; row 2 .*; row 4 [^;]*; …\. replace"
    ):
        _log(9, 1, 2, 4, 5).require_share(0.0)
    assert str(CorruptRecord(3, "", "bad")) == "row 3: bad"


def test_logs_are_merged_in_order_and_listed(tmp_path: Path) -> None:
    logs = [
        _log(10, 3),
        _log(5),
        CorruptLog.of(LISTED + 50, (CorruptRecord(i, "b,c.csv", "x\ny") for i in range(LISTED + 5))),
    ]
    merged = merge_logs(pickle.loads(pickle.dumps(logs)))
    assert (merged.seen, merged.count, len(merged.records)) == (LISTED + 65, LISTED + 6, LISTED)
    file = tmp_path / "corrupt.csv"
    merged.write(file)
    with file.open(newline="") as lines:
        rows = list(csv.reader(lines))
    assert rows[:3] == [
        ["path", "row", "reason"],
        ["a.csv", "3", "2 fields, not 3"],
        ["b,c.csv", "0", "x\ny"],
    ]
    assert rows[-1] == ["", "", "and 6 more"]
    assert merge_logs([]) == CorruptLog()
