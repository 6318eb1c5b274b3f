"""This node's copies of prepared data that lies on remote storage: whole folders, or shards as they are needed.

Each is fetched once by all processes of the node, and checked. Imports: pyarrow, filelock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.data.prepared.lease import Lease, hold
from orchestrator.data.prepared.manifest import (
    EXAMPLE,
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    Shard,
    is_whole,
    read_manifest,
)
from orchestrator.data.prepared.room import LIMIT_VARIABLE, make_room
from orchestrator.data.prepared.shards import OpenShard, open_shard
from orchestrator.data.sources.fingerprint import cache_root
from orchestrator.errors import DataError, StorageGone
from orchestrator.storage import Folder

if TYPE_CHECKING:
    from filelock import FileLock

_PIECE_BYTES = 1 << 22
_ATTEMPTS = 2


@dataclass(frozen=True)
class LocalStore:
    """Shards in a folder of this machine. Those whose time stamp is another than they were written with are
    hashed when they are opened, if `checked`."""

    folder: Path
    checked: bool = False

    def open(self, shard: Shard, *, load: bool) -> OpenShard:
        file = self.folder / shard.file
        for _ in range(_ATTEMPTS):  # the storage may come back just now
            try:
                if self.checked:
                    if not is_whole(file, shard._asdict()):
                        raise DataError(
                            f"{file} is damaged", "run the job again: damaged data is prepared anew"
                        )
                    _note_use(file, shard.mtime_ns)  # and need not be hashed in the next epoch
                return open_shard(file, shard.rows, load=load)
            except FileNotFoundError:
                check_storage(self.folder)
        raise DataError(f"{file} is missing", "run the job again: what is missing is prepared anew")


@dataclass(frozen=True)
class FetchingStore:
    """Shards on remote storage, each fetched into a folder of this node when it is first opened, and again when
    it had to go."""

    origin: Folder
    folder: Path

    def open(self, shard: Shard, *, load: bool) -> OpenShard:
        file = self.folder / shard.file
        for _ in range(_ATTEMPTS):
            try:
                found = open_shard(file, shard.rows, load=load)  # a renamed file is a whole one
            except FileNotFoundError:
                self._fetch(shard, file)
                continue
            _note_use(file, shard.mtime_ns)
            return found
        raise DataError(
            f"{file} is removed as soon as it is fetched",
            f"give the node's cache more room ({LIMIT_VARIABLE}), or make data.iterate.window smaller",
        )

    def _fetch(self, shard: Shard, file: Path) -> None:
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            if file.exists():  # another process of this node has just fetched it
                return
            for leftover in self.folder.glob(".*.arrow.*"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            make_room(shard.bytes)
            for _ in range(_ATTEMPTS):
                if _copied(self.origin, shard, file):
                    return
        raise DataError(
            f"{(self.origin / shard.file).uri} is damaged: its content is not what the manifest says",
            "run `orchestrator data verify` to see what else is, and the job again: it is prepared anew",
        )


def _copied(origin: Folder, shard: Shard, file: Path) -> bool:
    """Fetch a shard; whether it is what it should be. Only then it is there."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    digest = hashlib.sha256()
    try:
        with (
            origin.filesystem.open_input_stream((origin / shard.file).path, compression=None) as stream,
            temporary.open("wb") as target,
        ):
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                target.write(piece)
        if digest.hexdigest() != shard.sha256:
            return False
        temporary.replace(file)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def local_copy(folder: Folder) -> tuple[Path, Lease | None]:
    """Where the folder is on this node, which is a copy if it is remote, fetched once by all its processes; and
    a lease on it.

    Raises DataError where the remote folder is missing or arrives damaged.
    """
    target = node_path(folder)
    if folder.is_local:
        return target, hold(target)
    lease = hold(target)
    if read_manifest(target) is not None:
        return target, lease
    with node_lock(folder):
        if read_manifest(target) is None:
            lease = _download(folder, target)
        return target, lease or hold(target)


def _download(folder: Folder, target: Path) -> Lease | None:
    """Fetch a whole folder; it is there when it is whole, and held from then on."""
    manifest = remote_manifest(folder)
    for leftover in target.parent.glob(f"{target.name}.tmp-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    make_room(manifest.total_bytes)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        folder.download(temporary)
        if read_manifest(temporary) is None:
            raise incomplete(folder.uri)
        for name, facts in manifest.files.items():  # so that nobody has to hash them again
            os.utime(temporary / name, ns=(facts["mtime_ns"], facts["mtime_ns"]))
        lease = hold(temporary)  # of the file, whatever its folder is called
        if target.exists():  # damaged; processes that have it mapped keep their pages
            shutil.rmtree(target)
        temporary.replace(target)
        return lease
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def stream_folder(folder: Folder) -> Path:
    """A folder of this node for shards of a remote one, with all that is no shard in it already."""
    manifest = remote_manifest(folder)
    target = cache_root() / "shards" / Path(folder.path).name
    target.mkdir(parents=True, exist_ok=True)
    local = Folder.at(target)
    for name in (EXAMPLE, MANIFEST):
        if name in manifest.files or name == MANIFEST:
            local.write_bytes(name, folder.read_bytes(name))
    return target


def remote_manifest(folder: Folder) -> Manifest:
    """Raises DataError where there is none of this version."""
    try:
        value = folder.read_json(MANIFEST)
        if value is not None and value["format_version"] == FORMAT_VERSION:
            return Manifest.from_dict(value)
    except (ValueError, TypeError, KeyError):
        pass
    raise incomplete(folder.uri)


def incomplete(place: str) -> DataError:
    return DataError(
        f"{place} holds no complete prepared data", "run the job again: what is missing is prepared anew"
    )


def check_storage(folder: Path) -> None:
    """Raise StorageGone where not even the folder around is there that holds all prepared data: a mount is away, and
    nobody has removed this data."""
    if not folder.parent.is_dir():
        raise StorageGone(
            f"{folder.parent}, where prepared data lies, is not there",
            "see whether its disk is still mounted",
        )


def node_path(folder: Folder) -> Path:
    """Where prepared data lies on this node: the folder's own path, or its copy in this machine's cache."""
    return folder.local_path() if folder.is_local else cache_root() / "prepared" / Path(folder.path).name


def node_lock(folder: Folder) -> FileLock:
    """Held by the one process of this node (on shared local storage: of all nodes) that makes or fetches it.

    The process that holds it may take it again.
    """
    from filelock import FileLock

    path = node_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f"{path.name}.lock"), is_singleton=True)


def _note_use(file: Path, mtime_ns: int) -> None:
    with contextlib.suppress(OSError):  # just evicted, or another user's
        os.utime(file, ns=(time.time_ns(), mtime_ns))
