"""Which nodes keep failing and should get no more workers. Imports: spec, recovery.budgets."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.recovery.budgets import Lost
from orchestrator.spec.cluster import FailureSection


def avoided(lost: Sequence[Lost], now_s: float, section: FailureSection) -> dict[str, str]:
    """Node ids with the reason why they should be left out, as of `now_s` (seconds since the epoch).

    A node is avoided once `max_node_failures` attempts failed on it by `hardware` within the last
    `node_failure_window`. Other causes say nothing about the node: a preempted one was healthy, and a user error
    or want of memory comes along to the next. A node that comes back under another id begins anew.
    Whether enough workers fit without them is for `sizing` to see.
    """
    times_s: dict[str, list[float]] = {}
    for one in lost:
        if one.node and one.cause == "hardware" and now_s - one.time_s < section.node_failure_window:
            times_s.setdefault(one.node, []).append(one.time_s)
    return {
        node: f"{len(times)} attempts failed there within {now_s - min(times):.0f} s"
        for node, times in times_s.items()
        if len(times) >= section.max_node_failures
    }
