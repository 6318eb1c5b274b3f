"""The description begins with the result, tells every figure once, and is valid Markdown tables and code."""

from __future__ import annotations

from typing import Any

from orchestrator.export.report import run_description
from orchestrator.records import Verdict

FACTS: dict[str, Any] = {
    "run": "digits-3",
    "metrics": {
        "val/loss": 9.0,
        "best/val_loss": 0.05,
        "best/val_accuracy": 0.99,
        "best/step": 300.0,
        "test/loss": 0.0625,
        "test/accuracy": 0.98148,
        "test/f1": 0.9812,
        "test/my_metric": 123456.0,
    },
    "rows": {"train": 1257, "val": 270, "test": 270},
    "classes": list(range(10)),
    "model": "cnn",
    "num_parameters": 151306,
    "num_workers": 2,
    "global_batch_size": 64,
    "epochs": 15,
    "steps": 300,
    "duration_s": 83.4,
    "samples_per_s": 2345.6,
}


def test_the_result_comes_first_and_the_rest_follows() -> None:
    text = run_description(
        Verdict("SUCCEEDED", 0, "completed"),
        **FACTS,
        description="Handwritten digits.",
        model_uri="models:/digits/3",
        command="orchestrator run jobs/digits.yaml",
    )
    assert text.splitlines()[0] == "## Succeeded: test accuracy 0.9815, F1 0.9812"
    assert "Handwritten digits." in text
    assert "| accuracy | &emsp;0.9900 | &emsp;0.9815 |" in text
    assert "| loss | &emsp;0.0500 | &emsp;0.0625 |" in text
    assert "| `my_metric` | &emsp; | &emsp;1.235e+05 |" in text
    assert "best/step" not in text
    assert "The model is the checkpoint of step 300." in text
    assert "1,797 rows (1,257 train, 270 val, 270 test); 10 classes: 0, 1, 2" in text
    assert "`cnn`, 151,306 parameters" in text
    assert "2 workers, global batch 64, 15 epochs (300 steps) in 1 min 23 s, 2,346 samples/s" in text
    assert 'mlflow.pyfunc.load_model("models:/digits/3")' in text
    assert "```bash\norchestrator run jobs/digits.yaml\n```" in text


def test_a_failure_says_why_and_what_to_do_and_leaves_out_what_is_not_known() -> None:
    verdict = Verdict(
        "FAILED", 1, "CUDA ran out of memory", "out of memory", 1, "lower train.microbatch_size"
    )
    text = run_description(verdict, **{**FACTS, "metrics": {}, "rows": {}, "num_parameters": None})
    assert text.startswith("## Failed\n\n**Why** (out of memory): rank 1: CUDA ran out of memory")
    assert "**To mend**: lower train.microbatch_size" in text
    assert "| metric" not in text
    assert "**Data**" not in text
    assert "load_model" not in text


def test_without_a_test_part_the_validation_leads() -> None:
    metrics = {"best/val_rmse": 53.2, "best/val_r2": 0.5, "best/val_loss": 0.4}
    facts = {**FACTS, "metrics": metrics, "classes": None, "num_workers": 1, "duration_s": 4.04}
    text = run_description(Verdict("STOPPED", 143, "stopped"), **facts)
    assert text.startswith("## Stopped: validation R² 0.5000, RMSE 53.2000")
    assert "1 worker," in text
    assert "in 4.0 s" in text


def test_long_durations_and_many_classes_are_shortened() -> None:
    facts = {**FACTS, "duration_s": 7500.0, "classes": [f"c{i}" for i in range(100)]}
    text = run_description(Verdict("SUCCEEDED", 0, ""), **facts)
    assert "in 2 h 5 min" in text
    assert "100 classes: c0, " in text
    assert "c11, …" in text
    assert "c12" not in text


def test_attempts_are_told_where_there_was_more_than_one() -> None:
    rows = [
        {
            "attempt": n,
            "world_size": 4 - n,
            "from_step": 100 * n,
            "to_step": 1000 + n,
            "ended": f"end {n}",
            "seconds": 75.0,
        }
        for n in range(1, 4)
    ]
    line = "93%: 2 restarts (worker killed, node lost), 12 steps repeated, 14 s to recover"
    text = run_description(Verdict("SUCCEEDED", 0, ""), **FACTS, attempts=rows, goodput=line)
    assert f"- **Goodput**: {line}\n- **Run**: `digits-3`" in text
    assert "| 2 | &emsp;2 | &emsp;200–1,002 | &emsp;1 min 15 s | &emsp;end 2 |" in text
    assert "left out" not in text
    alone = run_description(Verdict("SUCCEEDED", 0, ""), **FACTS, attempts=rows[:1])
    assert "attempt" not in alone
    assert "Goodput" not in alone
    many = run_description(
        Verdict("SUCCEEDED", 0, ""), **FACTS, attempts=[rows[0] | {"attempt": n} for n in range(1, 26)]
    )
    assert "5 earlier attempts left out." in many
    assert "| 25 |" in many
    assert "| 5 |" not in many
