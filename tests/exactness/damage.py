"""Every way in which a checkpoint on a disk goes bad, done to a real one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def _flip(file: Path, share: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(share * (len(data) - 1))] ^= 0b0001_0000
    file.write_bytes(data)


def _cut(file: Path, length: Callable[[int], int]) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: length(len(data))])


def _hide(file: Path) -> None:
    """A rename that never came: the content lies under the name that it had while it was written."""
    file.rename(file.with_name(f".{file.name}.tmp-1"))


def _stale(file: Path) -> None:
    """The file of an older checkpoint in its place: whole in itself, but of another one."""
    older = sorted(folder for folder in file.parents[1].glob("step-*") if folder < file.parent)[-1]
    shutil.copy(older / file.name, file)


def _half_uploaded(file: Path) -> None:
    """The upload of the checkpoint was interrupted in this file: what comes later, the manifest above all, is
    missing."""
    _cut(file, lambda length: length // 2)
    (file.parent / "manifest.json").unlink(missing_ok=True)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit flipped at the beginning": lambda file: _flip(file, 0.0),
    "a bit flipped in the middle": lambda file: _flip(file, 0.5),
    "a bit flipped at the end": lambda file: _flip(file, 1.0),
    "cut in half": lambda file: _cut(file, lambda length: length // 2),
    "the last byte lost": lambda file: _cut(file, lambda length: length - 1),
    "a byte too many": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "missing": lambda file: file.unlink(),
    "a rename that never came": _hide,
    "that of another checkpoint": _stale,
    "half an upload": _half_uploaded,
}
"""What can happen to any file of a checkpoint."""
