"""Look at the cluster's nodes now and then, beside the polls: where the head is away, a look waits for it.

Imports: ray.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from types import TracebackType

import ray

from orchestrator.recovery.sizing import NodeFacts
from orchestrator.runners.ray_workers.nodes import node_facts
from orchestrator.runners.ray_workers.placement import Place

_log = logging.getLogger(__name__)
EVERY_S = 2.0
_PATIENCE_S = 2.0


def look_at_nodes(place: Place | None) -> list[NodeFacts]:
    """The nodes as they are; what the place holds counts as free. Raises Ray's errors where the head is away."""
    if place is None:
        return node_facts()
    return node_facts(place.held(), place.per_worker)


class NodeWatch:
    """Looks from a thread of its own, within a `with` block."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._over = threading.Event()
        self._looks: deque[list[NodeFacts]] = deque(maxlen=2)
        self._fresh = False
        self._thread = threading.Thread(target=self._watch, name="node-watch", daemon=True)

    def __enter__(self) -> NodeWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(_PATIENCE_S)  # not longer: it may be waiting for the head

    def newest(self) -> tuple[list[NodeFacts], list[NodeFacts] | None] | None:
        """The newest look and the one before it; None where nothing new was seen since the last call."""
        if not self._fresh:
            return None
        self._fresh = False
        *before, newest = self._looks
        return newest, before[0] if before else None

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            try:
                self._looks.append(look_at_nodes(self._place))
                self._fresh = True
            except ray.exceptions.RayError as error:
                _log.warning("Ray does not tell which nodes there are: %s", error)
