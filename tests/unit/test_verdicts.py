from __future__ import annotations

from orchestrator.runners.verdicts import failed


def test_what_ray_passes_on_is_cut_to_its_gist() -> None:
    passed_on = (
        "\x1b[36mray::Worker.run()\x1b[39m (pid=7)\nTraceback (most recent call last):\n  File 'a.py', line 3\n"
        "\x1b[31mOSError: no space left\x1b[0m\n"
    )
    assert failed(RuntimeError(passed_on), []).reason == "RuntimeError: OSError: no space left"
    assert failed(RuntimeError("two\n  lines"), []).reason == "RuntimeError: two lines"
    assert len(failed(RuntimeError("x" * 9000), []).reason) < 600
