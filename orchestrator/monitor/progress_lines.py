"""One readable line for a run's progress and one for its verdict, and the way back.

A job on a cluster is seen through its log only: what `format_progress` and `format_verdict` print there,
`parse_progress` and `parse_verdict` find again, whatever stands around it on the line.
Imports: records, spec.units, the standard library.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from orchestrator.errors import Cause
from orchestrator.records import Progress, Status, Verdict
from orchestrator.units import parse_duration
from orchestrator.wording import one_line

_PROGRESS = re.compile(r"epoch (\d+)/(\d+) · step (\d+)/(\d+)((?: ?· [^·\n]*)*)")
_VERDICT = re.compile(
    rf"verdict: (?P<status>{'|'.join(get_args(Status))}) (?P<run>\S+) "
    rf"\(exit (?P<exit_code>\d+)(?:, (?P<cause>{'|'.join(get_args(Cause))}))?(?:, rank (?P<rank>\d+))?\): "
    r"(?P<rest>.*)"
)
_METRICS = re.compile(r" \[((?:[^\s=\[\]]+=[^\s=\[\]]+ ?)+)\]$")
_TO_MEND = " To mend: "
_PHASES = ("starting", "evaluating", "saving", "finishing")


def format_duration(seconds: float) -> str:
    """`12s`, `3m20s`, `1h05m`, `2d03h`: the two largest units, rounded."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


def format_progress(progress: Progress) -> str:
    """`epoch 3/20 · step 120/400 · 3,120 samples/s · train 0.123 · val 0.110 · eta 12s`.

    What is not known is left out; losses have four significant digits; any phase but training ends the line.
    """
    parts = [f"epoch {progress.epoch}/{progress.max_epochs}", f"step {progress.step}/{progress.max_steps}"]
    if progress.samples_per_s:
        rate = progress.samples_per_s
        parts.append(f"{rate:,.0f} samples/s" if rate >= 100 else f"{rate:.3g} samples/s")
    if progress.train_loss is not None:
        parts.append(f"train {progress.train_loss:.4g}")
    if progress.val_loss is not None:
        parts.append(f"val {progress.val_loss:.4g}")
    if progress.eta_s is not None:
        parts.append(f"eta {format_duration(progress.eta_s)}")
    if progress.phase != "training":
        parts.append(progress.phase)
    return " · ".join(parts)


def parse_progress(line: str) -> Progress | None:
    """The progress that a line of a log tells; None where it tells none."""
    match = _PROGRESS.search(line)
    if match is None:
        return None
    epoch, max_epochs, step, max_steps = (int(group) for group in match.groups()[:4])
    facts: dict[str, Any] = {}
    for part in match.group(5).split("·"):
        words = part.split()
        try:
            match words:
                case [rate, "samples/s", *_]:
                    facts["samples_per_s"] = float(rate.replace(",", ""))
                case ["train" | "val" as which, loss, *_]:
                    facts[f"{which}_loss"] = float(loss)
                case ["eta", eta, *_]:
                    facts["eta_s"] = parse_duration(eta)
                case [phase, *_] if phase in _PHASES:
                    facts["phase"] = phase
        except ValueError:
            continue  # someone else's words on the line
    return Progress(epoch, max_epochs, step, max_steps, **facts)


def format_verdict(verdict: Verdict, run_name: str) -> str:
    """`verdict: FAILED digits-3 (exit 1, out of memory, rank 2): reason. To mend: advice [test/loss=0.1]`.

    Always one line; metrics have six significant digits.
    """
    inside = [f"exit {verdict.exit_code}"]
    if verdict.cause:
        inside.append(verdict.cause)
    if verdict.rank is not None:
        inside.append(f"rank {verdict.rank}")
    text = one_line(verdict.reason)
    if verdict.mend:
        text = f"{text.rstrip('.')}.{_TO_MEND}{one_line(verdict.mend)}"
    if verdict.metrics:
        text += f" [{' '.join(f'{key}={value:.6g}' for key, value in sorted(verdict.metrics.items()))}]"
    return f"verdict: {verdict.status} {run_name} ({', '.join(inside)}): {text}"


def parse_verdict(text: str) -> Verdict | None:
    """The last verdict that a log tells; None where it tells none. What was several lines is one line now."""
    verdicts = list(_VERDICT.finditer(text))
    if not verdicts:
        return None
    match = verdicts[-1]
    rest = match["rest"].rstrip()
    metrics: dict[str, float] = {}
    if found := _METRICS.search(rest):
        try:
            metrics = {key: float(value) for key, _, value in (m.partition("=") for m in found[1].split())}
            rest = rest[: found.start()]
        except ValueError:
            metrics = {}  # brackets that belong to the reason
    reason, _, mend = rest.partition(f".{_TO_MEND}")
    return Verdict(
        status=match["status"],  # type: ignore[arg-type]
        exit_code=int(match["exit_code"]),
        reason=reason,
        cause=match["cause"],  # type: ignore[arg-type]
        rank=int(match["rank"]) if match["rank"] else None,
        mend=mend,
        metrics=metrics,
    )
