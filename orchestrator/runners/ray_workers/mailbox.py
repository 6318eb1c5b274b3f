"""The mailbox between workers and driver: a plain class that `train` makes an actor of. Imports: records.

Its process loads nothing else: it is up at once and small.
"""

from __future__ import annotations

from orchestrator.records import Letter, Reply


class Mailbox:
    """Holds letters until the driver takes them, and what the driver answered. A Ray actor of no CPU."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._acknowledged: dict[int, int] = {}
        self._stop = False
        self._abort = False

    def exchange(self, letter: Letter) -> tuple[Reply, bool]:
        self._letters.append(letter)
        return Reply(self._acknowledged.get(letter.attempt, 0), self._stop), self._abort

    def take(self, answers: dict[int, int], stop: bool, abort: bool) -> list[Letter]:
        """The driver's call: leave answers and wishes, take the letters."""
        self._acknowledged.update(answers)
        self._stop, self._abort = stop, abort
        letters, self._letters = self._letters, []
        return letters

    def ending(self) -> bool:
        return self._stop or self._abort
