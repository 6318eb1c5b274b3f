"""A folder of prepared data: a manifest, and shards of rows for each part.

All processes of a node share one copy in the page cache. Reading the manifest is light. Imports: pyarrow.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from orchestrator.data.prepared.cache import (
    FetchingStore,
    LocalStore,
    check_storage,
    incomplete,
    local_copy,
    remote_manifest,
    stream_folder,
)
from orchestrator.data.prepared.lease import Lease, hold
from orchestrator.data.prepared.manifest import EXAMPLE, Manifest, read_manifest
from orchestrator.data.prepared.part import Part
from orchestrator.spec.data import Iterate
from orchestrator.storage import Folder

if TYPE_CHECKING:
    from orchestrator.data.features.pipeline import Pipeline

_MAPPED_BYTES = 16_000_000_000
"""Up to which `auto` maps. The data alone decides: a resumed run on another machine must choose the same."""


class Prepared:
    """Prepared data that can be read on this machine. It holds a lease on its folder, so that nobody removes it."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        iterate: Iterate | None = None,
        origin: Folder | None = None,
        lease: Lease | None = None,
    ) -> None:
        """`origin` is where shards are fetched from that are not in `folder`."""
        self.folder = folder
        self.manifest = manifest
        self.iterate = iterate or Iterate()
        self._origin = origin
        self._lease = lease or hold(folder)

    @classmethod
    def load(cls, folder: Folder | Path | str, iterate: Iterate | None = None) -> Prepared:
        """Open prepared data. A remote folder is fetched to this node first; where it is to be streamed, only
        what is no shard.

        Raises DataError where it is missing, incomplete or of another format version, StorageGone where the storage
        is away.
        """
        place = folder if isinstance(folder, Folder) else Folder.at(folder)
        if not place.is_local and streams(remote_manifest(place), iterate):
            path = stream_folder(place)
            return cls(path, remote_manifest(Folder.at(path)), iterate, origin=place)
        path, lease = local_copy(place)
        found = cls.find(path, iterate, lease)
        if found is None:
            check_storage(path)
            found = cls.find(path, iterate)  # the storage may have come back just now
        if found is None:
            raise incomplete(str(path))
        return found

    @classmethod
    def find(cls, path: Path, iterate: Iterate | None = None, lease: Lease | None = None) -> Prepared | None:
        """Open a folder of this machine; None where it is missing, incomplete or of another format version."""
        lease = lease or hold(path)  # before it is looked at: nobody removes it in between
        manifest = read_manifest(path, hashing=False)
        if manifest is None:
            return None
        if not streams(manifest, iterate):  # else each shard is checked when it is opened
            manifest = read_manifest(path)
        return cls(path, manifest, iterate, lease=lease) if manifest else None

    @cached_property
    def pipeline(self) -> Pipeline:
        from orchestrator.data.features.pipeline import Pipeline

        return Pipeline.from_dict(self.manifest.pipeline)

    @property
    def streaming(self) -> bool:
        """Whether parts are read shard by shard, with bounded memory."""
        return streams(self.manifest, self.iterate)

    def part(self, *names: str) -> Part:
        """The part `train`, `val` or `test`, or several as one; it has no rows where its ratio is 0."""
        return Part(
            LocalStore(self.folder, checked=self.streaming)
            if self._origin is None
            else FetchingStore(self._origin, self.folder),
            [shard for name in names for shard in self.manifest.shards_of(name)],
            self.manifest.stored_shape,
            self.iterate.window if self.streaming else None,
            keep=self._lease,
        )

    def raw_example(self, n: int = 5) -> pa.Table:
        """The first rows (at most 5) of the training part as the source gave them, feature columns only; of
        long texts the beginning."""
        with pa.ipc.open_file(str(self.folder / EXAMPLE)) as reader:
            return reader.read_all().slice(0, n)

    def __reduce__(self) -> tuple[Any, ...]:
        return Prepared, (self.folder, self.manifest, self.iterate, self._origin)


def streams(manifest: Manifest, iterate: Iterate | None) -> bool:
    """Whether this data is streamed or mapped as a whole."""
    kind = iterate.kind if iterate else "auto"
    return kind == "streaming" or (kind == "auto" and manifest.total_bytes > _MAPPED_BYTES)
