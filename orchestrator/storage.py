"""Files of runs on local disks, HDFS or object stores, through pyarrow filesystems.

A `Folder` is a place on one filesystem. A file appears whole or not at all: it is written beside and renamed
(object stores put whole objects). On HDFS, which renames onto nothing that exists, a file that is replaced is
missing for some milliseconds. Imports: the standard library and pyarrow.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from orchestrator.errors import UsageError


@dataclass(frozen=True)
class Folder:
    """A folder on a local or remote filesystem. It need not exist yet."""

    filesystem: Any
    path: str
    query: str = ""
    """What stood behind the `?` of its URI, as `endpoint_override=…`: others need it to come here."""
    server: str = ""
    """What stood before the path in its URI, as `hdfs://namenode:8020`, where the path begins with no bucket."""

    @classmethod
    def at(cls, location: str | Path) -> Folder:
        """The folder at a path (made absolute) or a URI such as `s3://bucket/runs`.

        Raises UsageError for a URI that pyarrow does not know.
        """
        text = str(location)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), str(Path(text).expanduser().resolve()))
        try:
            filesystem, path = filesystem_of(text)
        except (OSError, ValueError, NotImplementedError) as error:
            raise UsageError(
                f"storage '{text}' cannot be opened: {error}",
                "write a path, or a URI that pyarrow knows: file://, s3://, gs://, abfs://, hdfs://",
            ) from error
        query = text.partition("?")[2]
        if filesystem.type_name != "hdfs":
            return cls(filesystem, path, query)
        parts = urllib.parse.urlsplit(text)
        return cls(filesystem, path or "/", query, f"{parts.scheme}://{parts.netloc}")

    @property
    def uri(self) -> str:
        """What `Folder.at` takes to come here again: a path where it is local."""
        if self.is_local:
            return self.path
        start = self.server or f"{self.filesystem.type_name}://"
        return f"{start}{self.path}{f'?{self.query}' if self.query else ''}"

    @property
    def is_local(self) -> bool:
        return bool(self.filesystem.type_name == "local")

    @property
    def renames(self) -> bool:
        """Whether files are written beside and renamed; object stores put them when they are closed."""
        return self.filesystem.type_name in ("local", "hdfs")

    def __truediv__(self, name: str) -> Folder:
        return replace(self, path=str(PurePosixPath(self.path) / name))

    def local_path(self) -> Path:
        """The path on this machine; raises UsageError where the folder is remote."""
        if not self.is_local:
            raise UsageError(f"{self.uri} is not a local folder")
        return Path(self.path)

    def create(self) -> Folder:
        self.filesystem.create_dir(self.path, recursive=True)
        return self

    def create_new(self) -> bool:
        """Make this folder; False where it is there already. Atomic on a local filesystem, so that two
        drivers never take the same run number; object stores have no such call and a look must do."""
        if self.is_local:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            try:
                Path(self.path).mkdir()
            except FileExistsError:
                return False
            return True
        if self.exists():
            return False
        self.create()
        return True

    def exists(self, name: str = "") -> bool:
        return bool(self.info(name).type != pafs.FileType.NotFound)

    def info(self, name: str = "") -> Any:
        """pyarrow's facts about this folder, or a file in it. Raises OSError where the storage does not answer."""
        info = self.filesystem.get_file_info(self._at(name))
        if info.type == pafs.FileType.NotFound and self.filesystem.type_name == "hdfs":
            require_hdfs(self.filesystem)
            info = self.filesystem.get_file_info(
                self._at(name)
            )  # it may have been silent then, and back since
        return info

    def names(self) -> list[str]:
        """Names of files and folders in here, sorted; empty where the folder does not exist."""
        return sorted(info.base_name for info in self.infos())

    def size_bytes(self, name: str) -> int:
        return int(self.info(name).size)

    def read_bytes(self, name: str) -> bytes:
        """The whole file; raises FileNotFoundError."""
        if self.filesystem.type_name == "hdfs" and not self.exists(name):
            # Asked for first, as Java writes its stack to the terminal where a file to be opened is not there.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._at(name))
        with self.filesystem.open_input_stream(self._at(name), compression=None) as stream:
            return bytes(stream.read())

    def open(self, name: str) -> Any:
        """The file for reading anywhere in it, a `pyarrow.NativeFile` to be closed; raises FileNotFoundError."""
        return self.filesystem.open_input_file(self._at(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file that appears whole or not at all, and is on the disk when this returns."""
        if self.is_local:
            target = Path(self._at(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).chmod(0o644)
                Path(temporary).replace(target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            return
        with self.put(name) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def put(self, name: str) -> Iterator[Any]:
        """A stream into a file of a remote filesystem, for those that do not have all of it at once.

        Where the block raises, an object store has what was written until then; HDFS has the file as it was."""
        target = PurePosixPath(self._at(name))
        self.filesystem.create_dir(str(target.parent), recursive=True)
        path = str(target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}") if self.renames else target)
        try:
            with self.filesystem.open_output_stream(path, compression=None) as stream:
                yield stream
        except BaseException:
            if self.renames:
                with contextlib.suppress(OSError):
                    self.filesystem.delete_file(path)
            raise
        if self.renames:
            self.filesystem.move(path, str(target))

    def read_json(self, name: str) -> Any:
        """The parsed file; None where it does not exist."""
        try:
            return json.loads(self.read_bytes(name))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def remove_file(self, name: str) -> None:
        if self.exists(name):
            self.filesystem.delete_file(self._at(name))

    def remove(self) -> None:
        """Remove the folder and all in it; nothing happens where it does not exist."""
        if self.exists():
            self.filesystem.delete_dir(self.path)

    def upload(self, local: Path) -> None:
        """Copy a local folder's files into here."""
        self.create()
        pafs.copy_files(str(local), self.path, destination_filesystem=self.filesystem)

    def download(self, local: Path) -> None:
        """Copy the files in here into a local folder."""
        local.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(self.path, str(local), source_filesystem=self.filesystem)

    def folders(self) -> Iterator[Folder]:
        """The folders in here, by name."""
        for info in sorted(self.infos(), key=lambda info: info.path):
            if info.type == pafs.FileType.Directory:
                yield self / info.base_name

    def infos(self) -> list[Any]:
        """pyarrow's facts about the files and folders in here; none where the folder does not exist."""
        try:
            return list(self.filesystem.get_file_info(pafs.FileSelector(self.path)))
        except FileNotFoundError:
            return []

    def _at(self, name: str) -> str:
        return str(PurePosixPath(self.path) / name) if name else self.path


def filesystem_of(uri: str) -> tuple[Any, str]:
    """pyarrow's filesystem for a URI, and the path in it. Raises OSError, ValueError or NotImplementedError."""
    options = os.environ.get("LIBHDFS_OPTS", "")
    if uri.startswith(("hdfs://", "viewfs://")) and "-Xrs" not in options:
        # Java, which starts in this process now, would take SIGINT and SIGTERM for itself, and end it unsaved.
        os.environ["LIBHDFS_OPTS"] = f"{options} -Xrs".lstrip()
    filesystem, path = pafs.FileSystem.from_uri(uri)
    return filesystem, path


def require_hdfs(filesystem: Any) -> None:
    """Raises OSError where HDFS does not answer: of any path it then says that nothing is there, as pyarrow puts it,
    but a listing fails."""
    filesystem.get_file_info(pafs.FileSelector("/"))
