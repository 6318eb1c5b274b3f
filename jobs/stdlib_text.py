"""The source text of Python's standard library, as the table that `jobs/char_lm.yaml` learns from."""

from __future__ import annotations

import sysconfig
from pathlib import Path


def read(max_characters: int) -> dict[str, list[str]]:
    """One row per module of the library's top folder, in the order of their names, up to so many characters."""
    texts: list[str] = []
    left = max_characters
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")[:left]
        if text:
            texts.append(text)
        left -= len(text)
    return {"text": texts}
