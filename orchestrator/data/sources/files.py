"""Find the files that a source names, on this machine or on remote storage, and read their bytes.

Imports: pyarrow.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from orchestrator.data.sources.remote import open_uri
from orchestrator.errors import SourceError
from orchestrator.storage import require_hdfs

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for an image."""
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst")


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was found. `relative` is its path from the folder on that the source names, with `/`."""

    path: str
    relative: str
    size_bytes: int
    mtime_ns: int
    """0 where the filesystem does not tell."""
    filesystem: Any = field(default=None, compare=False)
    """A pyarrow filesystem; None for this machine's own."""

    def __str__(self) -> str:
        if self.filesystem is None or "://" in self.path:
            return self.path
        return f"{self.filesystem.type_name}://{self.path}"

    @property
    def name(self) -> str:
        return self.relative.rpartition("/")[2]

    @property
    def is_compressed(self) -> bool:
        return self.name.lower().endswith(COMPRESSED_SUFFIXES)

    def open(self) -> Any:
        """A pyarrow NativeFile for random access, closed when used as a context."""
        return pa.OSFile(self.path) if self.filesystem is None else self.filesystem.open_input_file(self.path)

    def read_bytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """The content from `start` to `stop` (None: to its end). Raises OSError."""
        if self.filesystem is None:
            whole = not start and stop is None
            # A path object and a buffer would cost more than reading a small file, of which there are many.
            with open(self.path, "rb", buffering=0 if whole else -1) as file:  # noqa: PTH123
                file.seek(start)
                return file.read(-1 if stop is None else stop - start)
        with self.filesystem.open_input_file(self.path) as stream:
            stream.seek(start)
            return bytes(stream.read(None if stop is None else stop - start))

    def read_plain(self) -> bytes:
        """The content, unpacked where the name says that it is compressed. Raises OSError."""
        if not self.is_compressed:
            return self.read_bytes()
        if self.filesystem is None:
            with pa.input_stream(self.path, compression="detect") as stream:
                return bytes(stream.read())
        with self.filesystem.open_input_stream(self.path, compression="detect") as stream:
            return bytes(stream.read())


@dataclass(frozen=True)
class Location:
    """What a source's path names: a place on a filesystem (None: this machine's own), and a glob from there on."""

    shown: str
    base: str
    pattern: str
    filesystem: Any


def locate(path: str) -> Location:
    """Take a path, a glob or a URI apart. Raises SourceError where the storage cannot be reached."""
    if "://" in path:
        head, query = path.partition("?")[::2]
        scheme, _, rest = head.partition("://")
        fixed, pattern = _split_glob(rest)
        filesystem, base = open_uri(f"{scheme}://{fixed}" + (f"?{query}" if query else ""))
        local = filesystem.type_name == "local"
        return Location(head, base.rstrip("/") or "/", pattern, None if local else filesystem)
    absolute = os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - Path.absolute() leaves `..` in
    if glob.has_magic(path) and not os.path.lexists(absolute):
        fixed, pattern = _split_glob(absolute)
        return Location(absolute, fixed, pattern, None)
    return Location(absolute, absolute, "", None)


def _split_glob(path: str) -> tuple[str, str]:
    """A path up to the first part with a wildcard, and the rest."""
    parts = path.split("/")
    first = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    return "/".join(parts[:first]) or ("/" if path.startswith("/") else ""), "/".join(parts[first:])


def find_files(path: str, suffixes: tuple[str, ...]) -> list[File]:
    """The file, the files with these suffixes anywhere in the folder, or those that a glob matches, sorted.

    Names that begin with `.` or `_` are passed over in folders. Raises SourceError where there are none.
    """
    place = locate(path)
    if place.pattern:
        files = list(_matching(place))
        if not files:
            raise SourceError(f"data.source.path: no file matches {place.shown}", "correct the pattern")
        return _sorted(files)
    found = list(_walk(place))
    if [file.path for file in found] == [place.base]:
        return found
    files = [
        file
        for file in found
        if file.name.lower().endswith(suffixes)
        and not any(part[0] in "._" for part in file.relative.split("/"))
    ]
    if not files:
        raise SourceError(
            f"data.source.path: {place.shown} holds no {' or '.join(suffixes[:4])} file",
            "name another folder or a file",
        )
    return _sorted(files)


def with_compressed(suffixes: Iterable[str]) -> tuple[str, ...]:
    """The suffixes, plain and compressed."""
    plain = tuple(suffixes)
    return (*plain, *(name + packed for name in plain for packed in COMPRESSED_SUFFIXES))


def class_images(path: str) -> dict[str, list[File]]:
    """Images by class, after torchvision's ImageFolder: one subfolder per class, both sorted by name.

    Where each subfolder is called as a part (train, val, test, …) and has subfolders itself, those are the
    classes. Raises SourceError where there is no class folder or one without images.
    """
    place = locate(path)
    files = list(_walk(place))
    if place.pattern or [file.path for file in files] == [place.base]:
        raise SourceError(
            f"data.source.path: {place.shown} is a file", "name the folder that has one subfolder per class"
        )
    folders = {part for part in _folders(place, files) if part[0] != "."}
    if not folders:
        raise SourceError(
            f"data.source.path: {place.shown} has no subfolder",
            "an image folder holds one subfolder per class, as cats/1.jpg and dogs/1.jpg",
        )
    images = _sorted(
        file
        for file in files
        if file.name.lower().endswith(IMAGE_SUFFIXES)
        and not any(part[0] == "." for part in file.relative.split("/"))
    )
    depth = 1 if has_parts(file.relative for file in images) else 0
    groups: dict[str, list[File]] = {} if depth else {name: [] for name in sorted(folders)}
    for file in images:
        parts = file.relative.split("/")
        if len(parts) > depth + 1:
            groups.setdefault(parts[depth], []).append(file)
    empty = [name for name, group in groups.items() if not group]
    if empty:
        raise SourceError(
            f"data.source.path: no image in {', '.join(f'{place.shown}/{name}' for name in empty[:3])}",
            f"every subfolder is a class and needs images ({', '.join(IMAGE_SUFFIXES)}); remove what is none",
        )
    return groups


PART_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
"""Folders of an image folder that are parts and no classes, where all of them are called so."""


def has_parts(relatives: Iterable[str]) -> bool:
    """Whether paths of images begin with the folder of a part: `train/cats/1.jpg`."""
    deep = [parts for parts in (name.split("/") for name in relatives) if len(parts) > 1]
    return bool(deep) and all(parts[0].lower() in PART_FOLDERS and len(parts) > 2 for parts in deep)


def _matching(place: Location) -> Iterator[File]:
    """The files that a glob matches."""
    if place.filesystem is None:
        for name in glob.glob(place.pattern, root_dir=place.base, recursive=True):  # noqa: PTH207 - Path's finds hidden ones
            yield from _local_file(str(Path(place.base) / name), name)
        return
    matches = re.compile(_glob_regex(place.pattern)).fullmatch
    yield from (file for file in _walk(place, recursive="/" in place.pattern) if matches(file.relative))


def _walk(place: Location, *, recursive: bool = True) -> Iterator[File]:
    """All files at or below a place. Raises SourceError where there is nothing or it cannot be listed."""
    if place.filesystem is None:
        yield from _walk_local(place)
        return
    try:
        (info,) = place.filesystem.get_file_info([place.base])
        if info.type == pafs.FileType.NotFound:
            _require_answer(place)
            raise _missing(place)
        if info.type == pafs.FileType.Directory:
            selector = pafs.FileSelector(place.base, recursive=recursive)
            infos = place.filesystem.get_file_info(selector)
        else:
            infos = [info]
    except (OSError, NotImplementedError) as error:
        raise SourceError(
            f"data.source.path: {place.shown} cannot be listed: {error}",
            "check the address, and the rights of the credentials that this machine has",
        ) from error
    for info in infos:
        if info.type == pafs.FileType.File:
            relative = info.path.removeprefix(place.base).lstrip("/") or info.base_name
            yield File(info.path, relative, info.size or 0, info.mtime_ns or 0, place.filesystem)


_NOT_FOUND = 404
"""HTTP's answer."""


def _require_answer(place: Location) -> None:
    """Raises OSError where a server did not answer: to HDFS and fsspec that is the same as a file that is not there."""
    if place.filesystem.type_name == "hdfs":
        require_hdfs(place.filesystem)
    inner = getattr(getattr(place.filesystem, "handler", None), "fs", None)
    if inner is None:
        return
    try:
        inner.info(place.base)
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is not None and getattr(cause, "status", 0) != _NOT_FOUND:
            raise OSError(str(cause)) from error
    except Exception as error:
        raise OSError(str(error)) from error


def _walk_local(place: Location) -> Iterator[File]:
    if not Path(place.base).exists():
        raise _missing(place)
    if Path(place.base).is_file():
        yield from _local_file(place.base, Path(place.base).name)
        return
    start = len(place.base.rstrip("/")) + 1
    for folder, below, names in os.walk(place.base, followlinks=True):
        # A link to a folder that it lies in would never end.
        here = os.path.realpath(folder)
        below[:] = [name for name in below if not _is_above(os.path.realpath(f"{folder}/{name}"), here)]
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - there are millions of small files
            yield from _local_file(path, path[start:])


def _is_above(folder: str, other: str) -> bool:
    return folder == other or other.startswith(f"{folder.rstrip('/')}/")


def _local_file(path: str, relative: str) -> Iterator[File]:
    """The file, unless it is a pipe or the like, or a link to nowhere."""
    try:
        found = os.stat(path)  # noqa: PTH116 - there are millions of small files
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return
    if stat.S_ISREG(found.st_mode):
        yield File(path, relative, found.st_size, found.st_mtime_ns)


_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What the system says of links to nowhere."""


def _missing(place: Location) -> SourceError:
    return SourceError(
        f"data.source.path: {place.base if place.filesystem is None else place.shown} does not exist",
        "correct the path (a relative one starts at the working directory), or override it: data.source.path=PATH",
    )


def _folders(place: Location, files: Sequence[File]) -> set[str]:
    """Names of the folders in a place. Object stores know those only that hold files."""
    found = {file.relative.split("/")[0] for file in files if "/" in file.relative}
    if place.filesystem is None:
        found |= {entry.name for entry in Path(place.base).iterdir() if entry.is_dir()}
    return found


def _sorted(files: Iterable[File]) -> list[File]:
    return sorted(files, key=lambda file: file.relative.split("/"))


def _glob_regex(pattern: str) -> str:
    """A glob as a regular expression: `**` stands for any folders, `*` and `?` stay within a name."""
    parts = []
    for part in pattern.split("/"):
        if part == "**":
            parts.append(r"(?:(?!\.)[^/]+/)*")
            continue
        part = re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        part = re.sub(r"\\\[(!?)(.+?)\\\]", _character_set, part)
        parts.append((r"(?!\.)" if part.startswith("[") else "") + part + "/")
    text = "".join(parts)
    return text + r"(?!\.)[^/]+" if pattern.endswith("**") else text.removesuffix("/")


def _character_set(match: re.Match[str]) -> str:
    inside = match.group(2).replace(r"\-", "-")
    return f"[{'^' if match.group(1) else ''}{inside}]"
