"""The guard against leftovers, tried on tests that leave something behind."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

LEAKY = """
import os, subprocess, sys, threading
from pathlib import Path

def test_environment():
    os.environ["LEFT_BEHIND"] = "1"

def test_folder(tmp_path):
    os.chdir(tmp_path)

def test_child():
    subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

def test_thread():
    threading.Thread(target=threading.Event().wait, args=(3,), name="left-alone").start()

def test_search_path():
    sys.path.insert(0, "left-behind")

def test_clean(monkeypatch, tmp_path):
    assert "LEFT_BEHIND" not in os.environ
    assert "left-behind" not in sys.path
    monkeypatch.setenv("GONE_AFTERWARDS", "1")
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", ""], check=True)
    threading.Thread(target=len, args=("ends by itself",)).start()
"""


def test_what_a_test_leaves_behind_fails_it(pytester: pytest.Pytester) -> None:
    source = (Path(__file__).parents[1] / "conftest.py").read_text()
    pytester.makeconftest(source.replace("GRACE_S = 5.0", "GRACE_S = 0.1"))
    pytester.makepyfile(LEAKY)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=6, errors=4)
    result.stdout.fnmatch_lines_random(
        [
            "*environment variable LEFT_BEHIND",
            "*working directory *",
            "*child process *",
            "*thread left-alone",
        ]
    )
