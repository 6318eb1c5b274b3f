"""What a process says, kept in a file of the run: log records and prints. Imports: the standard library."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _LogFile(io.TextIOBase):
    """A log file for which no training ends: what a full disk does not take is left out."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._told = False

    def write(self, text: str) -> int:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            self._tell(error)
        return len(text)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # what waited for room
            self._tell(error)
        super().close()

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            print(f"the log {self._file.name} is not complete: {error}", file=sys.stderr)


class _Tee(io.TextIOBase):
    """Writes to a stream and to a file, both without secrets."""

    def __init__(self, stream: TextIO, file: _LogFile, redact: Callable[[str], str]) -> None:
        self._stream, self._file, self._redact = stream, file, redact

    def write(self, text: str) -> int:
        text = self._redact(text)
        self._file.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class _Formatter(logging.Formatter):
    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__(FORMAT)
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


@contextlib.contextmanager
def rank_log(path: Path, redact: Callable[[str], str], *, printed: bool = True) -> Iterator[None]:
    """Append this process's log records (and what it prints) to a file, for as long as the block runs.

    `redact` takes the secrets out of a text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("orchestrator")
    with contextlib.closing(_LogFile(path)) as file:
        everything = logging.StreamHandler(file)
        everything.setFormatter(_Formatter(redact))
        # The driver's terminal is for what matters; the file has it all.
        serious = logging.StreamHandler()
        serious.setLevel(logging.WARNING)
        serious.setFormatter(_Formatter(redact))
        before = (logger.level, logger.propagate)
        for handler in (everything, serious):
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            with contextlib.ExitStack() as stack:
                if printed:
                    stack.enter_context(contextlib.redirect_stdout(_Tee(sys.stdout, file, redact)))
                yield
        finally:
            for handler in (everything, serious):
                logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]
