"""How many workers fit on which nodes, when to change their number, and what a waiting run waits for.

All workers need the same, so packing them is arithmetic: each node holds so many, by its scarcest resource.
Imports: the standard library only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""Ray's: only the strict ones limit how many fit."""

_UNITS = 10_000  # Ray counts resources in these fractions
_WHOLE_DEVICES = frozenset({"GPU", "TPU", "NPU", "HPU", "neuron_cores"})
_SHOWN_NODES = 8


@dataclass(frozen=True)
class NodeFacts:
    """A live node. `free` counts what our own group holds as free. `deadline_s`: when a draining node goes away,
    seconds since the epoch; None where nobody said. `name` is for people: its host name or address. `address` is
    where its Ray listens, host:port; empty where that is not known.
    """

    node_id: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    draining: bool = False
    deadline_s: float | None = None
    name: str = ""
    address: str = ""


@dataclass(frozen=True)
class Resize:
    """Save, then go on with `to` workers; 0: save, and wait until enough fit. `to` may be the present number: the
    workers move to other nodes."""

    to: int
    why: str


def fitting(
    nodes: Sequence[NodeFacts],
    per_worker: Mapping[str, float],
    limits: tuple[int, int],
    avoid: Collection[str] = (),
    strategy: Strategy = "PACK",
) -> int:
    """How many workers fit now, at most the larger limit; 0 where fewer than the smaller one do.

    Draining nodes are left out. Nodes in `avoid` are left out unless fewer than the smaller limit fit without them
    (see `left_out`).
    """
    out = left_out(nodes, per_worker, limits, avoid, strategy)
    count = min(
        _count([node for node in nodes if node.node_id not in out], per_worker, limits[1], strategy),
        limits[1],
    )
    return count if count >= limits[0] else 0


def left_out(
    nodes: Sequence[NodeFacts],
    per_worker: Mapping[str, float],
    limits: tuple[int, int],
    avoid: Collection[str],
    strategy: Strategy = "PACK",
) -> frozenset[str]:
    """Those nodes to avoid that workers are really kept away from: all, or none where too few fit without them."""
    others = [node for node in nodes if node.node_id not in avoid]
    enough = _count(others, per_worker, limits[1], strategy) >= limits[0]
    return frozenset(node.node_id for node in nodes if node.node_id in avoid) if enough else frozenset()


def worth_waiting(
    nodes: Sequence[NodeFacts],
    per_worker: Mapping[str, float],
    limits: tuple[int, int],
    avoid: Collection[str] = (),
    strategy: Strategy = "PACK",
) -> bool:
    """Whether more workers would fit if others gave back what they hold: if not, waiting for more is idle."""
    empty = [replace(node, free=node.total) for node in nodes]
    return fitting(empty, per_worker, limits, avoid, strategy) > fitting(
        nodes, per_worker, limits, avoid, strategy
    )


def resize(
    nodes: Sequence[NodeFacts],
    group: Mapping[str, int],
    per_worker: Mapping[str, float],
    limits: tuple[int, int],
    avoid: Collection[str] = (),
    strategy: Strategy = "PACK",
    *,
    before: Sequence[NodeFacts] | None,
    now_s: float,
    last_change_s: float,
    cooldown_s: float,
    drain_lead_s: float = 60.0,
) -> Resize | None:
    """Whether a running group should be saved and started anew with another size or on other nodes.

    `group` is the number of workers on each node, by node id. `before` are the nodes as the look before this one saw
    them. Times are seconds since the epoch; `last_change_s` is when the group was started.

    - A node of the group drains: at once to what fits on the others. Where they cannot hold the least number of
      workers, training goes on until `drain_lead_s` before the deadline, then saves and waits (`to` = 0); without a
      deadline it stays.
    - More workers fit: when the look before saw that too, and `cooldown_s` has passed since the last change.

    That a node is avoided or gone is no reason here: the first speaks only for the next attempt, the second is a
    failure.
    """
    size = sum(group.values())
    fits = fitting(nodes, per_worker, limits, avoid, strategy)
    going = [node for node in nodes if node.draining and group.get(node.node_id)]
    if going:
        deadlines = [node.deadline_s for node in going if node.deadline_s is not None]
        left_s = min(deadlines) - now_s if deadlines else None
        names = ", ".join(_name(node) for node in going)
        why = f"{names} will be taken away" + (f" in {max(left_s, 0.0):.0f} s" if left_s is not None else "")
        if fits:
            return Resize(fits, f"{why}; {_workers(fits)} on the other nodes")
        if left_s is not None and left_s <= drain_lead_s:
            return Resize(0, f"{why}, and fewer than {_workers(limits[0])} on the other nodes")
        return None
    if fits <= size or before is None or now_s - last_change_s < cooldown_s:
        return None
    steady = min(fits, fitting(before, per_worker, limits, avoid, strategy))
    return Resize(steady, f"{_workers(steady)} now instead of {size}") if steady > size else None


def why_waiting(
    nodes: Sequence[NodeFacts],
    per_worker: Mapping[str, float],
    least: int,
    avoid: Collection[str] = (),
    strategy: Strategy = "PACK",
) -> str:
    """What is needed and what each node has free, in a line.

    For example `needs 2 × {CPU: 1}; room for 1; free: node h1 1 of 4 CPU`.
    """
    fits = _count([node for node in nodes if node.node_id not in avoid], per_worker, least, strategy)
    need = ", ".join(f"{name}: {amount:g}" for name, amount in per_worker.items())
    where = {"STRICT_PACK": " on one node", "STRICT_SPREAD": f" on {least} nodes"}.get(strategy, "")
    shown = "; ".join(_free(node, per_worker, avoid) for node in nodes[:_SHOWN_NODES]) or "no node is there"
    more = f"; and {len(nodes) - _SHOWN_NODES} more nodes" if len(nodes) > _SHOWN_NODES else ""
    return f"needs {least} × {{{need}}}{where}; room for {fits}; free: {shown}{more}"


def _count(nodes: Sequence[NodeFacts], per_worker: Mapping[str, float], most: int, strategy: Strategy) -> int:
    held = [_on(node, per_worker, most) for node in nodes if not node.draining]
    if strategy == "STRICT_PACK":
        return max(held, default=0)
    if strategy == "STRICT_SPREAD":
        return sum(count > 0 for count in held)
    return sum(held)


def _on(node: NodeFacts, per_worker: Mapping[str, float], most: int) -> int:
    """How many workers the node holds beside what it holds already; at most `most`."""
    return min(
        (_times(name, node.free.get(name, 0.0), need) for name, need in per_worker.items() if need > 0),
        default=most,
    )


def _times(name: str, free: float, need: float) -> int:
    """How often the need fits into what is free, in Ray's units, so that 0.1 fits ten times into 1.

    A worker's share of a device lies on one device: two devices hold two workers that need 0.6 of one, not three.
    How the shares of others lie on them is not known; whole devices are assumed to be free first.
    """
    free_units, need_units = max(round(free * _UNITS), 0), max(round(need * _UNITS), 1)
    if name not in _WHOLE_DEVICES or need_units >= _UNITS:
        return free_units // need_units
    whole, rest = divmod(free_units, _UNITS)
    return whole * (_UNITS // need_units) + rest // need_units


def _free(node: NodeFacts, per_worker: Mapping[str, float], avoid: Collection[str]) -> str:
    amounts = ", ".join(
        f"{node.free.get(name, 0.0):g} of {node.total.get(name, 0.0):g} {name}" for name in per_worker
    )
    state = " (going away)" if node.draining else " (avoided)" if node.node_id in avoid else ""
    return f"{_name(node)}{state} {amounts}"


def _name(node: NodeFacts) -> str:
    return f"node {node.name or node.node_id[:8]}"


def _workers(count: int) -> str:
    return f"{count} worker fits" if count == 1 else f"{count} workers fit"
