"""The finder of the user's modules: what an import would run is found, hashed and nothing of it imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.user_code import find_modules, hash_modules

CODE = {
    "nets.py": "import torch\nfrom parts import layers\nfrom . import gone\nclass Net: pass\n",
    "parts/__init__.py": "",
    "parts/layers.py": "from .blocks import Block\n",
    "parts/blocks.py": "def f():\n    import late\n",
    "parts/unused.py": "",
    "late.py": "x = 1\n",
    "stranger.py": "raise SystemExit('never imported')\n",
}
FOREIGN = {"stranger.py", "parts/unused.py"}


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


def found(root: Path, files: dict[str, str], *names: str) -> list[str]:
    return list(find_modules(names, [write(root, files)]))


def test_found_is_what_the_imports_reach(tmp_path: Path) -> None:
    modules = find_modules(["nets"], [write(tmp_path, CODE)])
    assert {str(module.relative): module.content.decode() for module in modules.values()} == {
        name: text for name, text in CODE.items() if name not in FOREIGN
    }
    assert list(modules) == ["late", "nets", "parts", "parts.blocks", "parts.layers"]
    assert "nets" not in sys.modules


PACKAGE = {"pack/__init__.py": "", "pack/sub/__init__.py": "", "pack/a.py": "", "pack/sub/b.py": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import pack.sub.b", ["pack", "pack.sub", "pack.sub.b"]),
        ("import pack.a as other", ["pack", "pack.a"]),
        ("from pack import a", ["pack", "pack.a"]),
        ("from pack.a import Thing", ["pack", "pack.a"]),
        ("from pack import *", ["pack"]),
        ("from pack.sub import b, nothing", ["pack", "pack.sub", "pack.sub.b"]),
        ("try:\n    import pack\nexcept ImportError:\n    pass", ["pack"]),
        ("import pack.missing.deeper", ["pack"]),
        ("import missing", []),
        ("from .. import pack", []),
    ],
)
def test_forms_of_import(text: str, expected: list[str], tmp_path: Path) -> None:
    assert found(tmp_path, PACKAGE | {"start.py": text}, "start") == [*expected, "start"]


def test_relative_imports_count_from_the_package_they_stand_in(tmp_path: Path) -> None:
    files = PACKAGE | {
        "pack/sub/__init__.py": "from . import b",
        "pack/sub/b.py": "from .. import a\nfrom .... import outside",
        "pack/a.py": "from .c import d",
        "pack/c.py": "",
        "outside.py": "",
    }
    expected = ["pack", "pack.a", "pack.c", "pack.sub", "pack.sub.b"]
    assert found(tmp_path, files, "pack.sub") == expected


def test_modules_may_import_each_other(tmp_path: Path) -> None:
    files = {"one.py": "import two", "two.py": "import one", "both/__init__.py": "import both.x\nimport one"}
    assert found(tmp_path, files, "one") == ["one", "two"]
    assert found(tmp_path, files | {"both/x.py": "from both import y"}, "both") == [
        "both",
        "both.x",
        "one",
        "two",
    ]


def test_the_finder_chooses_among_candidates_as_python_does(tmp_path: Path) -> None:
    roots = [
        write(tmp_path / "one", {"same.py": "1", "space/a.py": "1", "late/x.py": "1", "both.py": "1"}),
        write(
            tmp_path / "two", {"same.py": "2", "space/a.py": "2", "space/b.py": "2", "late/__init__.py": "2"}
        ),
        write(tmp_path / "three", {"both.py": "3", "both/__init__.py": "3", "late/x.py": "3"}),
    ]
    names = ["same", "space.a", "space.b", "late.x", "both"]
    for order in (roots, roots[::-1]):
        modules = find_modules(names, order)
        code = (
            "import importlib.util as u, json, sys\n"
            f"sys.path[:0] = {order}\n"
            "spec = lambda name: u.find_spec(name.rpartition('.')[0] or name) and u.find_spec(name)\n"
            f"print(json.dumps([getattr(spec(n), 'origin', None) for n in {names}]))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for name, origin in zip(names, json.loads(done.stdout), strict=True):
            content = modules[name].content if name in modules else None
            assert content == (Path(origin).read_bytes() if origin else None), name


def test_installed_packages_and_the_standard_library_are_left_out(tmp_path: Path) -> None:
    files = {
        "random.py": "import helper",
        "orchestrator/errors.py": "",
        "net.py": "import random, torch, helper\nfrom orchestrator import errors\n",
        "helper.py": "import net\n",
        "code/__init__.py": "from . import more",
        "code/more.py": "",
    }
    assert found(tmp_path, files, "net") == ["helper", "net"]
    assert found(tmp_path, files, "torch.nn", "orchestrator.errors", "a..b", "") == []
    assert found(tmp_path, files, "code") == ["code", "code.more"], "a name in the spec is the user's own"
    assert found(tmp_path / "site-packages", files, "net") == []


def test_what_is_no_python_is_found_with_its_fault(tmp_path: Path) -> None:
    files = {"net.py": r"import broken, odd; pattern = '\d'", "broken.py": "def (", "odd.py": "\0"}
    modules = find_modules(["net"], [write(tmp_path, files)])
    assert [name for name, module in modules.items() if module.fault] == ["broken", "odd"]
    assert str(tmp_path / "broken.py") in (modules["broken"].fault or "")


def test_the_hash_follows_the_user_modules_only(tmp_path: Path) -> None:
    base = hash_modules(["nets"], [write(tmp_path / "a", CODE)])
    assert base != hash_modules([], [tmp_path / "a"])
    for name in CODE:
        changed = write(tmp_path / name.replace("/", "_"), CODE | {name: CODE[name] + "# changed\n"})
        assert (hash_modules(["nets"], [changed]) != base) == (name not in FOREIGN), name


def test_the_hash_is_stable_against_path_time_and_order(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", CODE), write(tmp_path / "two" / "deep", CODE)
    os.utime(Path(two) / "nets.py", (1, 1))
    base = hash_modules(["nets", "late"], [one])
    assert (
        hash_modules(["late", "nets", "late"], [two])
        == hash_modules(["nets", "late"], [tmp_path, one])
        == base
    )


def test_the_hash_is_of_the_module_that_comes_first(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", {"late.py": "1"}), write(tmp_path / "two", {"late.py": "2"})
    assert hash_modules(["late"], [one, two]) == hash_modules(["late"], [one])
    assert hash_modules(["late"], [one]) != hash_modules(["late"], [two, one])


def test_code_that_is_broken_or_nowhere_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))
    here = write(tmp_path, {"broken.py": "def ("})
    assert hash_modules(["broken"], [here]) != hash_modules([], [here])
    for name in ("missing.part", "orchestrator.errors", "made_by_hand", "a..b", "", "sys"):
        assert hash_modules([name], [here]) == hash_modules([], [here]), name


INSTALLED = {
    "pack/__init__.py": "",
    "pack/nets.py": "import dep\nimport pack.more\n",
    "pack/more.py": "",
    "dep.py": "",
}


def test_installed_code_without_a_version_counts_by_its_own_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(write(tmp_path / "site", INSTALLED))
    monkeypatch.setattr(sys, "path", [str(base)])
    before = hash_modules(["pack.nets"], [])
    (base / "dep.py").write_text("changed")
    assert hash_modules(["pack.nets"], []) == before != hash_modules([], [])
    (base / "pack/more.py").write_text("changed")
    assert hash_modules(["pack.nets"], []) != before


@pytest.mark.parametrize("editable", [False, True])
def test_an_installed_distribution_counts_by_its_version_unless_it_is_editable(
    editable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    source = tmp_path / "source" if editable else site
    hashes = []
    monkeypatch.setattr(sys, "path", [str(site), str(source)])
    write(source, INSTALLED)
    for version, text in (("1.0", ""), ("1.0", "changed"), ("1.1", "changed")):
        write(source, {"pack/more.py": text})
        about = f"Metadata-Version: 2.1\nName: the-pack\nVersion: {version}\n"
        write(site / "the_pack.dist-info", {"METADATA": about, "top_level.txt": "pack\n"})
        hashes.append(hash_modules(["pack.nets"], []))
    assert (hashes[0] == hashes[1], hashes[1] == hashes[2]) == (not editable, editable)
    own = write(tmp_path / "own", {"pack/nets.py": "", "pack/__init__.py": ""})
    assert hash_modules(["pack.nets"], [own]) not in hashes
