"""Find the files that a source names. Imports: the standard library only."""

from __future__ import annotations

import glob
from pathlib import Path

from orchestrator.errors import SourceError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for an image."""
TEXT_SUFFIXES = (".txt", ".text", ".md")


def existing_path(path: str) -> Path:
    """The absolute path; relative ones start at the working directory. Raises SourceError where none is."""
    if "://" in path:
        raise SourceError(
            f"data.source.path: '{path}' is a URI, and sources are read from local paths",
            "mount or copy the data, and give its path",
        )
    absolute = Path(path).expanduser().absolute()
    if not absolute.exists():
        raise SourceError(
            f"data.source.path: {absolute} does not exist",
            "correct the path (a relative one starts at the working directory), or override it: "
            "data.source.path=PATH",
        )
    return absolute


def data_files(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The file, the files with these suffixes anywhere in the folder, or those that a glob matches, sorted.

    Files whose name begins with `.` or `_` are passed over. Raises SourceError where there are none.
    """
    if glob.has_magic(path) and "://" not in path and not Path(path).expanduser().exists():
        pattern = str(Path(path).expanduser().absolute())
        found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - takes absolute patterns
        files = sorted(file for file in found if file.is_file())
        if not files:
            raise SourceError(f"data.source.path: no file matches {pattern}", "correct the pattern")
        return files
    place = existing_path(path)
    if place.is_file():
        return [place]
    files = sorted(
        file
        for file in place.rglob("*")
        if file.suffix.lower() in suffixes and file.name[0] not in "._" and file.is_file()
    )
    if not files:
        raise SourceError(
            f"data.source.path: {place} holds no {' or '.join(suffixes)} file",
            "name another folder or a file",
        )
    return files


def class_images(path: str) -> dict[str, list[Path]]:
    """Images by class, after torchvision's ImageFolder: one subfolder per class, both sorted by name.

    Raises SourceError where there is no class folder or one without images.
    """
    root = existing_path(path)
    if not root.is_dir():
        raise SourceError(
            f"data.source.path: {root} is a file", "name the folder that has one subfolder per class"
        )
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise SourceError(
            f"data.source.path: {root} has no subfolder",
            "an image folder holds one subfolder per class, as cats/1.jpg and dogs/1.jpg",
        )
    images = {
        folder.name: sorted(
            file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        for folder in folders
    }
    empty = [name for name, files in images.items() if not files]
    if empty:
        raise SourceError(
            f"data.source.path: no image in {', '.join(str(root / name) for name in empty[:3])}",
            f"every subfolder is a class and needs images ({', '.join(IMAGE_SUFFIXES)}); remove what is none",
        )
    return images
