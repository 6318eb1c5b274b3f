from __future__ import annotations

from orchestrator.records import Failure
from orchestrator.runners.verdicts import failed


def test_what_ray_passes_on_is_cut_to_its_gist() -> None:
    passed_on = (
        "\x1b[36mray::Worker.run()\x1b[39m (pid=7)\nTraceback (most recent call last):\n  File 'a.py', line 3\n"
        "\x1b[31mOSError: no space left\x1b[0m\n"
    )
    assert failed(RuntimeError(passed_on), []).reason == "RuntimeError: OSError: no space left"
    assert failed(RuntimeError("two\n  lines"), []).reason == "RuntimeError: two lines"
    assert len(failed(RuntimeError("x" * 9000), []).reason) < 600


def test_the_verdict_is_on_what_the_error_names_not_on_what_an_earlier_attempt_met() -> None:
    earlier = Failure(rank=1, attempt=1, time_s=1.0, error="Connection closed by peer", cause="hardware")
    error = RuntimeError("no place")
    error.failure = Failure(  # type: ignore[attr-defined]
        rank=-1, attempt=1, time_s=9.0, error="no place in 10 s", cause="control plane", mend="wait"
    )
    verdict = failed(error, [earlier])
    assert (verdict.reason, verdict.cause, verdict.rank, verdict.mend) == (
        "no place in 10 s",
        "control plane",
        None,
        "wait",
    )
    assert failed(RuntimeError("inline"), [earlier]).rank == 1
