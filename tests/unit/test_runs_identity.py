from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from orchestrator.runs.identity import Identity, code_hash, differences, identify
from tests.unit.runs_helpers import identity_of, make_spec

CODE = {
    "nets.py": "import torch\nfrom parts import layers\nfrom . import gone\nclass Net: pass\n",
    "parts/__init__.py": "",
    "parts/layers.py": "from .blocks import Block\n",
    "parts/blocks.py": "def f():\n    import late\n",
    "late.py": "x = 1\n",
    "stranger.py": "raise SystemExit('never imported')\n",
}


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


def test_free_keys_do_not_count_and_all_others_do() -> None:
    base = identity_of(make_spec())
    for same in (
        {"train": {"max_epochs": 50, "max_steps": 7}},
        {"resources": {"num_workers": 3}},
        {"failure": {"max_failures": 9}},
        {"checkpoint": {"num_to_keep": 5}},
        {"storage": "elsewhere"},
        {"description": "new words"},
    ):
        assert identity_of(make_spec(**same)) == base, same
    for other, section in (
        ({"seed": 1}, "seed"),
        ({"model": {"name": "mlp"}}, "model"),
        ({"train": {"max_epochs": 5, "optimizer": {"kind": "sgd"}}}, "train"),
        ({"data": {"source": {"kind": "sklearn", "name": "digits"}, "target": "y"}}, "data"),
    ):
        changed = identity_of(make_spec(**other))
        assert changed.hash != base.hash
        assert [name for name in base.sections if base.sections[name] != changed.sections[name]] == [section]
    assert (
        identify(make_spec(), "other-data", []).sections["data_fingerprint"]
        != base.sections["data_fingerprint"]
    )
    assert Identity.from_dict(base.to_dict()) == base


def test_code_hash_follows_local_imports_only(tmp_path: Path) -> None:
    spec = make_spec(model={"name": "nets:Net"})
    here = write(tmp_path / "a", CODE)
    base = code_hash(spec, [here])
    assert base != code_hash(make_spec(), [here])
    for name in CODE:
        changed = write(tmp_path / name.replace("/", "_"), CODE | {name: CODE[name] + "# changed\n"})
        assert (code_hash(spec, [changed]) != base) == (name != "stranger.py"), name
    assert "nets" not in sys.modules


def test_code_hash_is_stable_against_path_and_time(tmp_path: Path) -> None:
    spec = make_spec(model={"name": "nets:Net"}, train={"loss": "late:loss"})
    one, two = write(tmp_path / "one", CODE), write(tmp_path / "two" / "deep", CODE)
    os.utime(Path(two) / "nets.py", (1, 1))
    assert code_hash(spec, [one]) == code_hash(spec, [two]) == code_hash(spec, [str(tmp_path), one])


def test_the_first_search_path_wins_as_in_an_import(tmp_path: Path) -> None:
    spec = make_spec(model={"name": "late:Net"})
    one, two = write(tmp_path / "one", {"late.py": "1"}), write(tmp_path / "two", {"late.py": "2"})
    assert code_hash(spec, [one, two]) == code_hash(spec, [one]) != code_hash(spec, [two, one])


def test_installed_code_is_hashed_but_not_its_dependencies(tmp_path: Path, monkeypatch) -> None:
    spec = make_spec(model={"name": "pack.nets:Net"})
    files = {
        "pack/__init__.py": "",
        "pack/nets.py": "import dep\nimport pack.more\n",
        "pack/more.py": "",
        "dep.py": "",
    }
    base = write(tmp_path / "site", files)
    monkeypatch.setattr(sys, "path", [base])
    before = code_hash(spec, [])
    (Path(base) / "dep.py").write_text("changed")
    assert code_hash(spec, []) == before
    (Path(base) / "pack/more.py").write_text("changed")
    assert code_hash(spec, []) != before


def test_broken_or_missing_code_is_no_error(tmp_path: Path) -> None:
    spec = make_spec(model={"name": "broken:Net"}, train={"loss": "missing:loss"})
    assert code_hash(spec, [write(tmp_path, {"broken.py": "def ("})]) != code_hash(spec, [])


def test_differences_name_keys_with_old_and_new_values() -> None:
    old, new = (
        make_spec(),
        make_spec(seed=3, train={"max_epochs": 9, "optimizer": {"kind": "adamw", "lr": 0.5}}),
    )
    text = yaml.safe_dump(old.model_dump(mode="json"))
    told = differences(identity_of(old), identify(new, "other", []), text, new)
    assert told == ["the content of the data changed", "seed: 0 → 3", "train.optimizer.lr: 0.001 → 0.5"]
    assert differences(identity_of(old), identity_of(new)) == ["seed changed", "train changed"]
    assert differences(identity_of(old), identity_of(new), "{", new) == ["seed changed", "train changed"]
    assert differences(identity_of(old), identity_of(old), text, old) == []
