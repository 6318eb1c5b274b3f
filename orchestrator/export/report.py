"""The description of a run, in Markdown, for the tracking server: the result first. Imports: records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.records import Verdict
from orchestrator.wording import counted, rounded, time_taken

_TITLES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "auroc": "AUROC",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
    "mse": "MSE",
    "precision": "precision",
    "recall": "recall",
    "loss": "loss",
}
_HEADLINE = ("accuracy", "f1", "auroc", "r2", "rmse", "mae")
_MOST_IN_HEADLINE = 2
_MOST_CLASSES = 12
_MOST_ATTEMPTS = 20
_GAP = "&emsp;"


def run_description(
    verdict: Verdict,
    *,
    run: str,
    metrics: Mapping[str, float],
    rows: Mapping[str, int],
    classes: Sequence[object] | None,
    model: str,
    num_parameters: int | None,
    num_workers: int,
    global_batch_size: int,
    epochs: int,
    steps: int,
    duration_s: float,
    samples_per_s: float | None = None,
    description: str = "",
    model_uri: str | None = None,
    command: str | None = None,
    attempts: Sequence[Mapping[str, Any]] = (),
    goodput: str = "",
) -> str:
    """Verdict and main figures, then metrics, data, model and training, and how to go on.

    `metrics` has keys such as `test/accuracy`, `val/loss` and `best/val_loss` (of the checkpoint that was
    taken; it wins over `val/`). `rows` counts rows per part, `run` is the run's label and `model` the spec's
    `model.name`. `epochs` and `steps` are those done. `model_uri` is what MLflow's `load_model` takes,
    `command` what starts the run again; both are left out where they are not known. `attempts` are rows with
    `attempt`, `world_size`, `from_step`, `to_step`, `ended` and `seconds`, shown where there was more than one;
    `goodput` is one line on what restarts and stalls cost, empty where they cost nothing.
    """
    figures = _figures(metrics)
    parts = [_headline(verdict, figures)]
    if verdict.status != "SUCCEEDED":
        parts.append(_blame(verdict))
    if description:
        parts.append(description.strip())
    if figures:
        # The UI's tables have no space between columns.
        table = [f"| metric | {_GAP}validation | {_GAP}test |", "|---|---:|---:|"]
        table += [
            f"| {_title(name)} | {_GAP}{_number(val)} | {_GAP}{_number(test)} |"
            for name, (val, test) in figures.items()
        ]
        parts.append("\n".join(table))
        if "best/step" in metrics:
            parts.append(f"The model is the checkpoint of step {metrics['best/step']:,.0f}.")
    size = "" if num_parameters is None else f", {num_parameters:,} parameters"
    speed = f", {samples_per_s:,.0f} samples/s" if samples_per_s else ""
    facts = [
        *([f"- **Data**: {_rows(rows)}{_classes(classes)}"] if rows else []),
        f"- **Model**: `{model}`{size}",
        f"- **Training**: {counted(num_workers, 'worker')}, global batch {global_batch_size:,}, "
        f"{counted(epochs, 'epoch')} ({counted(steps, 'step')}) in {time_taken(duration_s)}{speed}",
        f"- **Run**: `{run}`",
    ]
    if goodput:
        facts.insert(-1, f"- **Goodput**: {goodput}")
    parts.append("\n".join(facts))
    if len(attempts) > 1:
        parts.append(_attempts(attempts))
    if model_uri:
        parts.append(
            "Load the model (it takes raw rows):\n\n```python\nimport mlflow\n\n"
            f'model = mlflow.pyfunc.load_model("{model_uri}")\nmodel.predict(rows)\n```'
        )
    if command:
        parts.append(f"Run it again:\n\n```bash\n{command}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> str:
    """The newest attempts as a table."""
    shown = attempts[-_MOST_ATTEMPTS:]
    left_out = len(attempts) - len(shown)
    table = [
        f"| attempt | {_GAP}workers | {_GAP}steps | {_GAP}time | {_GAP}ended |",
        "|---:|---:|---:|---:|---|",
        *(
            f"| {row['attempt']} | {_GAP}{row['world_size'] or ''} | {_GAP}{row['from_step']:,}–{row['to_step']:,} "
            f"| {_GAP}{time_taken(row['seconds'])} | {_GAP}{row['ended']} |"
            for row in shown
        ),
    ]
    return "\n".join(table) + (f"\n\n{counted(left_out, 'earlier attempt')} left out." if left_out else "")


def _figures(metrics: Mapping[str, float]) -> dict[str, tuple[float | None, float | None]]:
    """Validation and test value by metric, known metrics first, loss after them."""
    val = {key.removeprefix("val/"): value for key, value in metrics.items() if key.startswith("val/")}
    val |= {
        key.removeprefix("best/val_"): value for key, value in metrics.items() if key.startswith("best/val_")
    }
    test = {key.removeprefix("test/"): value for key, value in metrics.items() if key.startswith("test/")}
    known = [name for name in _TITLES if name in val or name in test]
    others = sorted((val.keys() | test.keys()) - set(known))
    return {name: (val.get(name), test.get(name)) for name in [*known, *others]}


def _headline(verdict: Verdict, figures: Mapping[str, tuple[float | None, float | None]]) -> str:
    which = 1 if any(test is not None for _, test in figures.values()) else 0
    names = [name for name in [*_HEADLINE, *figures] if name in figures and figures[name][which] is not None]
    chosen = list(dict.fromkeys(names))[:_MOST_IN_HEADLINE]
    told = ", ".join(f"{_title(name)} {_number(figures[name][which])}" for name in chosen)
    part = ("validation", "test")[which]
    return f"## {verdict.status.capitalize()}" + (f": {part} {told}" if told else "")


def _blame(verdict: Verdict) -> str:
    cause = f" ({verdict.cause})" if verdict.cause else ""
    rank = f"rank {verdict.rank}: " if verdict.rank is not None else ""
    mend = f"\n\n**To mend**: {verdict.mend}" if verdict.mend else ""
    return f"**Why**{cause}: {rank}{verdict.reason}{mend}"


def _title(name: str) -> str:
    return _TITLES.get(name, f"`{name}`")


def _number(value: float | None) -> str:
    return "" if value is None else rounded(value)


def _rows(rows: Mapping[str, int]) -> str:
    parts = ", ".join(f"{count:,} {part}" for part, count in rows.items() if count)
    return f"{sum(rows.values()):,} rows ({parts})"


def _classes(classes: Sequence[object] | None) -> str:
    if not classes:
        return ""
    shown = ", ".join(str(label) for label in classes[:_MOST_CLASSES])
    return f"; {len(classes)} classes: {shown}{', …' if len(classes) > _MOST_CLASSES else ''}"
