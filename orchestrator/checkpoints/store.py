"""The checkpoints of one run as they lie in its folder: found, checked, read, committed, removed.

A worker of an older attempt that still lives (a cut-off node) may not commit: the newest attempt fences it.
Imports: storage; `tensors` inside functions, so that looking at checkpoints loads no torch.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.checkpoints.files import Sink, check_file, read_checked, sync_folder, write_file
from orchestrator.checkpoints.manifest import (
    MANIFEST,
    STATE,
    FileFacts,
    Manifest,
    dump_manifest,
    parse_manifest,
    step_of,
)
from orchestrator.checkpoints.patience import PAUSES_S, patiently
from orchestrator.checkpoints.retention import Retention, kept, ranked
from orchestrator.checkpoints.shard_files import Piece, pieces_of, read_rows
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_FENCE = "attempt.json"


class Fenced(CheckpointError):
    """The worker belongs to an attempt that is over."""


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run. Only rank 0 commits; every rank may write files of its own."""

    folder: Folder
    retention: Retention = field(default_factory=Retention)
    pauses_s: Sequence[float] = PAUSES_S
    """Between tries, where the storage fails for a moment."""

    def last_attempt(self) -> int:
        """The number of the newest attempt that has begun; 0 where none has. Raises OSError."""
        found = self._patiently(lambda: self.folder.read_json(_FENCE), f"reading {_FENCE}")
        return int((found or {"attempt": 0})["attempt"])

    def begin_attempt(self, number: int | None = None) -> int:
        """Begin the attempt of this number, by default the next, and shut out the workers of earlier ones. Rank 0 only.

        A driver that starts attempt after attempt gives each its number, so that one which was cut off before it
        began cannot take the place of its successor. Raises CheckpointError where that has begun, OSError.
        """
        last = self.last_attempt()
        attempt = last + 1 if number is None else number
        if attempt <= last:
            raise _fenced(attempt, "begin")
        self._patiently(lambda: self.folder.write_json(_FENCE, {"attempt": attempt}), f"writing {_FENCE}")
        return attempt

    def sweep(self, attempt: int) -> None:
        """Remove what saves that never committed left behind, and tell of it. Rank 0 only, and not while it saves.

        Raises CheckpointError where a newer attempt than this has begun, whose save it might be; OSError.
        """
        self._check_fence(attempt, "sweep")
        for name in self.uncommitted():
            _log.warning(
                "checkpoint %s was never committed, or has lost its manifest: it is removed",
                (self.folder / name).uri,
            )
            self._check_fence(attempt, "sweep")
            self._patiently(lambda name=name: self.discard(name), f"removing {name}")  # type: ignore[misc]
        if not self.folder.renames:
            return
        for place in [self.folder, *(self.folder / name for name in self._names())]:
            for name in place.names():
                if name.startswith("."):
                    place.remove_file(name)

    def manifests(self) -> list[Manifest]:
        """All committed checkpoints, oldest first; those whose manifest is damaged are reported and left out."""
        found = []
        for name in self._names():
            manifest = self.find(name)
            if isinstance(manifest, str):
                _log.warning(
                    "checkpoint %s is passed over: %s: %s", (self.folder / name).uri, MANIFEST, manifest
                )
            elif manifest is not None:
                found.append(manifest)
        return sorted(found, key=lambda manifest: manifest.step)

    def find(self, name: str) -> Manifest | str | None:
        """The checkpoint of this name; what is wrong with its manifest; None where there is no manifest."""
        place = self.folder / name
        try:
            data = self._patiently(lambda: place.read_bytes(MANIFEST), f"reading {MANIFEST} of {name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            if not (place.is_local and error.errno == errno.EIO):
                raise
            return f"it cannot be read: {error}"
        try:
            return parse_manifest(data, name)
        except ValueError as error:
            return str(error)

    def uncommitted(self) -> list[str]:
        """Names of folders without a manifest: saves that are being written, were interrupted, or have lost it."""
        return [name for name in self._names() if not (self.folder / name).exists(MANIFEST)]

    def best(self) -> Manifest | None:
        """The best checkpoint by the score; None where none has been scored."""
        return next(iter(ranked(self.manifests(), self.retention)), None)

    def verify(self, manifest: Manifest, names: Iterable[str] | None = None) -> list[str]:
        """What is wrong with the files (by default all) that the manifest names, a phrase for each. Raises OSError
        where the storage does not let them be read."""
        place = self.folder / manifest.name
        found = []
        for name in manifest.files if names is None else names:
            damage = self._checked(place, name, manifest.files[name])
            if damage is not None:
                found.append(f"{name}: {damage}")
        return found

    def damages(self, *, in_use: bool = False, only: str | None = None) -> dict[str, list[str]]:
        """What is wrong with each checkpoint (or with one), a phrase for each file, by name, oldest first; nothing
        for those that are whole. `in_use`: what stands after the newest one is being written, and left out."""
        names = [name for name in self._names() if only in (None, name)]
        committed = [name for name in self._names() if (self.folder / name).exists(MANIFEST)]
        found: dict[str, list[str]] = {}
        for name in names:
            manifest = self.find(name)
            if isinstance(manifest, Manifest):
                found[name] = self.verify(manifest)
            elif manifest is not None:
                found[name] = [f"{MANIFEST}: {manifest}"]
            elif not (in_use and name > max(committed, default="")):
                found[name] = [f"{MANIFEST}: it is missing; the save was interrupted, or the file was lost"]
        return found

    def superfluous(self) -> list[Manifest]:
        """What the retention does not want, oldest first; never the newest one that is whole."""
        manifests = self.manifests()
        keep = kept(manifests, self.retention)
        whole = next((manifest.name for manifest in reversed(manifests) if not self.verify(manifest)), None)
        return [manifest for manifest in manifests if manifest.name not in keep and manifest.name != whole]

    def read(self, manifest: Manifest, name: str) -> bytes:
        """One of its files. Raises CheckpointError where it is damaged or cannot be read, and OSError where the
        storage is not there, which says nothing about the file."""
        place = self.folder / manifest.name
        try:
            return self._patiently(
                lambda: read_checked(place, name, manifest.files[name]), f"reading {name} of {manifest.name}"
            )
        except OSError as error:
            if place.is_local and error.errno == errno.EIO:
                raise CheckpointError(f"checkpoint {place.uri} is damaged: {name}: {error}") from error
            raise

    def load(self, manifest: Manifest) -> dict[str, Any]:
        """What all ranks share of it, on the CPU. Raises as `read`."""
        from orchestrator.checkpoints.tensors import parse_state

        data = self.read(manifest, STATE)
        try:
            return parse_state(data)
        except ValueError as error:
            raise CheckpointError(
                f"checkpoint {(self.folder / manifest.name).uri} is damaged: {STATE} cannot be read: {error}"
            ) from error

    def rows(self, manifest: Manifest) -> Callable[[Mapping[str, tuple[int, int]]], dict[str, bytearray]]:
        """What reads rows of its sharded tensors out of the ranks' files (see `shard_files.read_rows`): as much as
        is asked for, and of files that have been verified. What it returns raises as `read`."""
        place = self.folder / manifest.name
        files = [name for name in manifest.files if name.endswith(".safetensors")]
        pieces: dict[str, list[Piece]] = {}

        def read(wanted: Mapping[str, tuple[int, int]]) -> dict[str, bytearray]:
            if wanted and not pieces:
                what = f"reading the headers of {manifest.name}"
                pieces.update(self._patiently(lambda: pieces_of(place, files), what))
            return self._patiently(
                lambda: read_rows(place, pieces, wanted), f"reading the ranks' files of {manifest.name}"
            )

        return read

    def load_newest(self) -> tuple[Manifest, dict[str, Any]] | None:
        """The newest checkpoint that is whole, all files checked; damaged ones are reported and passed over.

        None where there is none at all; raises CheckpointError where all are damaged.
        """
        manifests = self.manifests()
        for manifest in reversed(manifests):
            try:
                owners = self.load(manifest)
            except CheckpointError as error:
                _log.error("%s", error)
                continue
            damages = self.verify(manifest, [name for name in manifest.files if name != STATE])
            if not damages:
                return manifest, owners
            _log.error("checkpoint %s is damaged: %s", (self.folder / manifest.name).uri, "; ".join(damages))
        if manifests:
            raise self.all_damaged(len(manifests))
        return None

    def all_damaged(self, count: int) -> CheckpointError:
        return CheckpointError(
            f"all {count} checkpoints in {self.folder.uri} are damaged",
            "start again with --fresh, or restore the folder from a backup",
        )

    def write(
        self,
        checkpoint: str,
        name: str,
        produce: Callable[[Sink], None],
        *,
        attempt: int,
        check: Callable[[], None] = lambda: None,
    ) -> FileFacts:
        """Write a file of a checkpoint that is not committed yet; `check` is called between its pieces and may
        raise. Raises CheckpointError where a newer attempt has begun, OSError."""
        place = self.folder / checkpoint

        def whole(sink: Sink) -> None:
            produce(sink)
            # Before the file replaces one that may be the newer attempt's.
            self._check_fence(attempt, f"commit checkpoint {checkpoint}")

        return self._patiently(
            lambda: write_file(place, name, whole, check=check, temporary=f"tmp-{attempt}"),
            f"writing {name} of {checkpoint}",
        )

    def withdraw(self, checkpoint: str, attempt: int) -> None:
        """A checkpoint of the same step is about to be replaced: first it stops to exist. Rank 0 only.

        Raises CheckpointError where a newer attempt has begun, OSError.
        """
        self._check_fence(attempt, f"commit checkpoint {checkpoint}")
        place = self.folder / checkpoint
        self._patiently(lambda: place.remove_file(MANIFEST), f"removing {MANIFEST} of {checkpoint}")

    def is_fenced(self, attempt: int) -> bool:
        """Whether a newer attempt than this one has begun. Raises OSError."""
        return self.last_attempt() > attempt

    def commit(self, manifest: Manifest) -> None:
        """Let a checkpoint exist whose files are all written, and remove what need not be kept beside it.

        Raises CheckpointError where a newer attempt has begun, OSError.
        """
        place = self.folder / manifest.name
        self._check_fence(manifest.attempt, f"commit checkpoint {manifest.name}")
        if self.folder.is_local:
            sync_folder(self.folder.local_path())  # the checkpoint's own folder has a name too
        content = dump_manifest(manifest)
        self._patiently(
            lambda: write_file(
                place, MANIFEST, lambda sink: _all(sink, content), temporary=f"tmp-{manifest.attempt}"
            ),
            f"writing {MANIFEST} of {manifest.name}",
        )
        try:
            self._prune(manifest)
        except OSError as error:  # what is too many only takes room, and the next save tries again
            _log.warning("old checkpoints in %s could not be removed: %s", self.folder.uri, error)

    def discard(self, checkpoint: str) -> None:
        """Remove a checkpoint, or what there is of it. The manifest goes first: no half is ever taken for whole."""
        place = self.folder / checkpoint
        place.remove_file(MANIFEST)
        place.remove()

    def room(self) -> int | None:
        """Free bytes where the checkpoints lie; None where that is not known."""
        try:
            return shutil.disk_usage(self.folder.local_path()).free if self.folder.is_local else None
        except OSError:
            return None

    def _check_fence(self, attempt: int, what: str) -> None:
        if self.is_fenced(attempt):
            raise _fenced(attempt, what)

    def _prune(self, newest: Manifest) -> None:
        """Remove what the retention does not want. What stands after the newest one is of a line of history that
        was left: its checkpoint was damaged, or the run was set back."""
        manifests = [manifest for manifest in self.manifests() if manifest.step <= newest.step]
        keep = kept(manifests, self.retention) | {newest.name}
        for name in self._names():
            if name not in keep:
                # A worker that froze here and comes back would take its successor's checkpoints for such a line.
                self._check_fence(newest.attempt, "prune")
                self.discard(name)

    def _names(self) -> list[str]:
        places = self._patiently(lambda: list(self.folder.folders()), f"listing {self.folder.uri}")
        names = [place.path.rpartition("/")[2] for place in places]
        return [name for name in names if step_of(name) is not None]

    def _checked(self, place: Folder, name: str, expected: FileFacts) -> str | None:
        try:
            return self._patiently(
                lambda: check_file(place, name, expected), f"reading {name} of {place.uri}"
            )
        except OSError as error:
            if place.is_local and error.errno == errno.EIO:
                return str(error)
            raise

    def _patiently(self, action: Callable[[], _T], what: str) -> _T:
        return patiently(action, what, self.pauses_s)


def _all(sink: Sink, content: bytes) -> None:
    sink.write(content)


def _fenced(attempt: int, what: str) -> Fenced:
    return Fenced(
        f"attempt {attempt} may not {what}: a newer attempt has begun",
        "this worker was believed dead; let it end",
    )
