from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import MissingPackage, UsageError, UserCodeError
from orchestrator.imports import add_search_paths, check_object, import_optional, load_object


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = set(sys.modules)
    add_search_paths([tmp_path])
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_object_of_a_users_module(folder: Path) -> None:
    (folder / "my_code_a.py").write_text("class Net:\n    def build(): return 7\n")
    assert load_object("my_code_a:Net").__name__ == "Net"
    assert load_object("my_code_a:Net.build")() == 7


def test_an_object_of_a_package(folder: Path) -> None:
    (folder / "my_package_b").mkdir()
    (folder / "my_package_b" / "nets.py").write_text("size = 3\n")
    assert load_object("my_package_b.nets:size") == 3


def test_a_module_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match="no module 'my_code_c'") as caught:
        load_object("my_code_c:Net")
    assert "my_code_c.py" in caught.value.mend
    assert str(folder) in caught.value.mend
    (folder / "my_package_d").mkdir()
    with pytest.raises(UsageError, match=r"no module 'my_package_d\.nets'"):
        load_object("my_package_d.nets:Net")


def test_an_object_that_is_not_there(folder: Path) -> None:
    (folder / "my_code_e.py").write_text("x = 1\n")
    with pytest.raises(UsageError, match="module 'my_code_e' has no 'Net'"):
        load_object("my_code_e:Net")
    with pytest.raises(UsageError, match=r"has no 'x\.y'"):
        load_object("my_code_e:x.y")


def test_a_module_that_raises_is_the_users_error(folder: Path) -> None:
    (folder / "my_code_f.py").write_text("1 / 0\n")
    with pytest.raises(UserCodeError, match="raised ZeroDivisionError: division by zero") as caught:
        load_object("my_code_f:Net")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    (folder / "my_code_g.py").write_text("def broken(:\n")
    with pytest.raises(UserCodeError, match="raised SyntaxError"):
        load_object("my_code_g:Net")


def test_a_module_that_needs_what_is_not_installed(folder: Path) -> None:
    (folder / "my_code_h.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(UserCodeError, match="needs 'not_installed_anywhere'") as caught:
        load_object("my_code_h:Net")
    assert "runtime_env.pip" in caught.value.mend


def test_search_paths_come_first_in_their_order_and_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    add_search_paths([first, second])
    add_search_paths([str(first), second])
    assert sys.path[:2] == [str(first), str(second)]
    assert sys.path.count(str(first)) == 1


def test_an_optional_package() -> None:
    assert import_optional("json", extra="x", purpose="this").dumps([1]) == "[1]"
    with pytest.raises(
        MissingPackage, match="GPU power needs the package 'not_installed_anywhere'"
    ) as caught:
        import_optional("not_installed_anywhere.part", extra="gpu", purpose="GPU power")
    assert "pip install 'ray-orchestrator[gpu]'" in caught.value.mend


def test_a_missing_module_is_found_missing_without_running_anything(tmp_path: Path) -> None:
    (tmp_path / "bomb.py").write_text("class Anything: pass\nraise SystemExit('imported')\n")
    add_search_paths([tmp_path])
    check_object("bomb:Anything")
    for path in ("no_such_module:Net", "no_such_package.module:Net"):
        with pytest.raises(UsageError, match="next to the spec"):
            check_object(path)


def test_a_misspelt_object_is_found_in_the_source(tmp_path: Path) -> None:
    (tmp_path / "spelt.py").write_text(
        "import math as m\nif 1:\n    class SmallNet: pass\nlarge, (small, *rest) = 1, (2, 3)\nraise SystemExit"
    )
    (tmp_path / "dynamic.py").write_text("globals()['Net'] = int\n")
    (tmp_path / "starred.py").write_text("from math import *\n")
    (tmp_path / "broken.py").write_text("class Net(:\n")
    add_search_paths([tmp_path])
    for name in ("m.sqrt", "SmallNet", "SmallNet.build", "large", "rest"):
        check_object(f"spelt:{name}")
    for path in ("dynamic:Net", "starred:Net", "broken:Net", "math:sqrt"):
        check_object(path)
    with pytest.raises(UsageError, match="module 'spelt' has no 'SmalNet'") as caught:
        check_object("spelt:SmalNet")
    assert caught.value.mend == "did you mean 'SmallNet'?"
