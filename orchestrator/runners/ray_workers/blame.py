"""Who was at fault when an attempt failed: pure functions. Imports: records.

A rank that fails takes the others along: their collectives break. What they report is the consequence, and the one
that noticed first need not be the one that failed.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.records import Failure


def culprit(
    reported: Mapping[int, Failure], died: Mapping[int, Failure], silent: Mapping[int, Failure]
) -> Failure:
    """The failure that the others followed from.

    `reported` is what ranks said of themselves, `died` are ranks whose process is gone (`time_s` is when they last
    answered), `silent` ranks that do not answer any more. A fault of a rank's own, or its death, goes before silence,
    and that before a broken collective; among equals the earliest counts. At least one must be given.
    """
    own = [failure for failure in reported.values() if not failure.peer_lost]
    for group in ([*own, *died.values()], [*silent.values()], [*reported.values()]):
        if group:
            return min(group, key=lambda failure: (failure.time_s, failure.rank))
    raise ValueError("nobody failed")
