"""A run's folder `<storage>/<name>-<number>/`: what lies in it, and how runs are numbered and found.

The names of all files are here and nowhere else. Imports: storage, records, the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import UsageError
from orchestrator.records import Progress, Verdict
from orchestrator.storage import Folder

_Facts = TypeVar("_Facts", "RunRecord", "Beat", Verdict, Progress)

RECORD_FILE = "run.json"
SPEC_FILE = "spec.yaml"
VERDICT_FILE = "verdict.json"
RESULT_FILE = "result.json"
HEARTBEAT_FILE = "heartbeat.json"
GOODPUT_FILE = "goodput.json"
STOP_FILE = "stop.request"
SEARCH_FILE = "search/summary.json"
_LABEL = re.compile(r"([a-z0-9][a-z0-9_-]{0,62})-([1-9]\d*)")


@dataclass(frozen=True)
class RunRecord:
    """`run.json`: what identifies a run, and where it is recorded. `identity` is `Identity.to_dict()`."""

    name: str
    number: int
    identity: Mapping[str, Any] = field(default_factory=dict)
    max_epochs: int = 1
    max_steps: int | None = None
    num_samples: int | None = None
    """Of a search, as `time_budget_s`."""
    time_budget_s: float | None = None
    created_s: float = 0.0
    tracking_uri: str | None = None
    experiment_name: str | None = None
    mlflow_run_id: str | None = None
    attempts: int = 0
    submission_id: str | None = None


@dataclass(frozen=True)
class Beat:
    """`heartbeat.json`: the last sign of life of the driver that holds `claim`, its `count`th."""

    time_s: float
    host: str
    pid: int
    claim: int
    count: int = 0
    attempt: int = 1
    progress: Progress | None = None


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Reading what is not there gives None; files appear whole or not at all."""

    storage: Folder
    name: str
    number: int
    digits: int = 1
    """The number is written with so many at least."""

    @property
    def label(self) -> str:
        """`digits-3`: the folder's name, and the run's name in MLflow."""
        return f"{self.name}-{self.number:0{self.digits}d}"

    @property
    def folder(self) -> Folder:
        return self.storage / self.label

    @property
    def local(self) -> Path:
        """Where this machine keeps what belongs to the run: its folder, or a place in the cache if that is remote."""
        if self.folder.is_local:
            return self.folder.local_path()
        # Another storage may have a run of the same label.
        place = hashlib.sha256(self.folder.uri.encode()).hexdigest()[:12]
        return Path.home() / ".cache" / "orchestrator" / "runs" / f"{self.label}-{place}"

    @property
    def checkpoints(self) -> Folder:
        return self.folder / "checkpoints"

    @property
    def tracking(self) -> Folder:
        return self.folder / "tracking"

    @property
    def model(self) -> Folder:
        return self.folder / "model"

    @property
    def init(self) -> Folder:
        """The weights that the run begins with, where the spec has `init_from`."""
        return self.folder / "init"

    @property
    def pictures(self) -> Folder:
        return self.folder / "pictures"

    @property
    def profile(self) -> Folder:
        return self.folder / "profile"

    @property
    def evidence(self) -> Folder:
        """Batches that led to numbers that are not finite."""
        return self.folder / "evidence"

    @property
    def logs(self) -> Folder:
        return self.folder / "logs"

    @property
    def claims(self) -> Folder:
        return self.folder / "drivers"

    @property
    def search(self) -> Folder:
        """What a search has decided so far."""
        return self.folder / "search"

    def trial(self, label: str) -> RunFolder:
        """The folder of one trial of a search, as `trial-007`: within it, it is like a run's own."""
        name, _, number = label.rpartition("-")
        return RunFolder(self.folder / "trials", name, int(number), digits=len(number))

    def attempt_logs(self, attempt: int) -> Folder:
        return self.logs / f"attempt-{attempt}"

    def postmortem(self, attempt: int) -> Folder:
        """What was gathered when an attempt failed."""
        return self.attempt_logs(attempt) / "postmortem"

    def read_record(self) -> RunRecord | None:
        return _from_dict(RunRecord, self._read_dict(RECORD_FILE))

    def write_record(self, record: RunRecord) -> None:
        self.folder.write_json(RECORD_FILE, asdict(record))

    def update_record(self, **changes: Any) -> RunRecord:
        """Write `run.json` with these fields changed. Only the driver that holds the run may do so.

        Raises OSError where it cannot be read: what it says of the run must not be lost.
        """
        facts = self.folder.read_json(RECORD_FILE)
        record = replace(_from_dict(RunRecord, facts) or RunRecord(self.name, self.number), **changes)
        self.write_record(record)
        return record

    def read_spec(self) -> str | None:
        try:
            return self.folder.read_bytes(SPEC_FILE).decode()
        except FileNotFoundError:
            return None

    def write_spec(self, text: str) -> None:
        """The rendered spec as YAML, secrets masked."""
        self.folder.write_bytes(SPEC_FILE, text.encode())

    def read_verdict(self) -> Verdict | None:
        return _from_dict(Verdict, self._read_dict(VERDICT_FILE))

    def write_verdict(self, verdict: Verdict) -> None:
        self.folder.write_json(VERDICT_FILE, verdict.to_dict())

    def read_result(self) -> dict[str, Any] | None:
        return self._read_dict(RESULT_FILE)

    def write_result(self, result: Mapping[str, Any]) -> None:
        self.folder.write_json(RESULT_FILE, dict(result))

    def read_beat(self) -> Beat | None:
        facts = self._read_dict(HEARTBEAT_FILE)
        if facts is None:
            return None
        return _from_dict(Beat, facts | {"progress": _from_dict(Progress, facts.get("progress"))})

    def write_beat(self, beat: Beat) -> None:
        self.folder.write_json(HEARTBEAT_FILE, asdict(beat))

    def read_search(self) -> dict[str, Any] | None:
        """The newest view of the run's search; None where it has none."""
        return self._read_dict(SEARCH_FILE)

    def write_search(self, summary: Mapping[str, Any]) -> None:
        # Compact, which Python does in C, three times as fast: a long search is written each second.
        self.folder.write_bytes(SEARCH_FILE, json.dumps(summary, sort_keys=True).encode() + b"\n")

    def read_goodput(self) -> dict[str, Any] | None:
        """What `Ledger.to_dict` gave."""
        return self._read_dict(GOODPUT_FILE)

    def write_goodput(self, ledger: Mapping[str, Any]) -> None:
        self.folder.write_json(GOODPUT_FILE, dict(ledger))

    def request_stop(self) -> None:
        """Ask the driver to save and end."""
        self.folder.write_bytes(STOP_FILE, b"")

    def stop_requested(self) -> bool:
        return self.folder.exists(STOP_FILE)

    def clear_ending(self) -> None:
        """Forget how an earlier driver ended, since a new one goes on."""
        for name in (STOP_FILE, VERDICT_FILE, RESULT_FILE):
            self.folder.remove_file(name)

    def _read_dict(self, name: str) -> dict[str, Any] | None:
        try:
            value = self.folder.read_json(name)
        except (OSError, ValueError):  # damaged, or a folder in its place: as good as absent
            return None
        return value if isinstance(value, dict) else None


def list_runs(storage: Folder, name: str | None = None) -> list[RunFolder]:
    """The runs in a storage folder, by name and number; those of one name where it is given.

    Folders without a readable `run.json` are left out: their driver died before it wrote one, or is at it.
    """
    runs = [run for run in _numbered(storage) if name is None or run.name == name]
    return [run for run in runs if run.read_record() is not None]


def create_run(storage: Folder, name: str) -> RunFolder:
    """Make the folder of the next run of a name. Two drivers at once get different numbers.

    Raises UsageError where the storage cannot be written.
    """
    try:
        number = 1 + max((run.number for run in _numbered(storage) if run.name == name), default=0)
        while not (run := RunFolder(storage, name, number)).folder.create_new():
            number += 1
    except OSError as error:
        raise UsageError(
            f"storage {storage.uri} cannot be written: {error}", "name another one with --storage"
        ) from error
    return run


def find_run(storage: Folder, text: str) -> RunFolder:
    """The run `digits-3`, or the newest run of the name `digits`.

    Raises UsageError that lists the known ones.
    """
    runs = list_runs(storage)
    for run in runs:
        if run.label == text:
            return run
    named = [run for run in runs if run.name == text]
    if named:
        return named[-1]
    known = ", ".join(run.label for run in runs[-20:])
    raise UsageError(
        f"no run is named '{text}' in {storage.uri}",
        f"known runs: {known}" if known else "there are no runs; name another folder with --storage",
    )


def _numbered(storage: Folder) -> list[RunFolder]:
    found = [(match[1], int(match[2])) for match in map(_LABEL.fullmatch, storage.names()) if match]
    return [RunFolder(storage, name, number) for name, number in sorted(found)]


def _from_dict(kind: type[_Facts], facts: dict[str, Any] | None) -> _Facts | None:
    """A record from its JSON form; unknown keys are ignored; None where required ones are missing."""
    if facts is None:
        return None
    known = {item.name for item in fields(kind)}
    try:
        return kind(**{key: value for key, value in facts.items() if key in known})
    except TypeError:
        return None
