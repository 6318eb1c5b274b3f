"""What a process says, kept in a file of the run: log records and prints. Imports: the standard library."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Tee(io.TextIOBase):
    """Writes to a stream and to a file."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        self._file.write(text)
        self._file.flush()
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


@contextlib.contextmanager
def rank_log(path: Path, *, printed: bool = True) -> Iterator[None]:
    """Append this process's log records (and what it prints) to a file, for as long as the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("orchestrator")
    with path.open("a", encoding="utf-8") as file:
        everything = logging.StreamHandler(file)
        everything.setFormatter(logging.Formatter(FORMAT))
        # The driver's terminal is for what matters; the file has it all.
        serious = logging.StreamHandler()
        serious.setLevel(logging.WARNING)
        before = (logger.level, logger.propagate)
        for handler in (everything, serious):
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            with contextlib.ExitStack() as stack:
                if printed:
                    stack.enter_context(contextlib.redirect_stdout(_Tee(sys.stdout, file)))
                yield
        finally:
            for handler in (everything, serious):
                logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]
