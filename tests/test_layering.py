"""The import rules of the package, held by reading its source: who imports whom, and what is loaded when."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1] / "orchestrator"

LAYERS: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "records": frozenset(),
    "units": frozenset(),
    "wording": frozenset(),
    "imports": frozenset(),
    "user_code": frozenset(),
    "storage": frozenset({"pyarrow"}),
    "vision": frozenset({"torch", "torchvision"}),
    "spec": frozenset({"pydantic", "pydantic_core", "yaml"}),
    "checkpoints": frozenset({"torch"}),
    "data": frozenset(
        {
            *("PIL", "filelock", "fsspec", "numpy", "pandas", "pyarrow", "simplejpeg"),
            *("sklearn", "tokenizers"),
            *("torch", "torchvision", "adbc_driver_postgresql", "pymongo"),
        },
    ),
    "models": frozenset({"safetensors", "torch", "torchvision"}),
    "engine": frozenset({"numpy", "safetensors", "torch", "torchmetrics"}),
    "compress": frozenset({"torch"}),
    "monitor": frozenset({"psutil", "pynvml"}),
    "tracking": frozenset({"mlflow", "numpy", "pandas", "requests"}),
    "export": frozenset({"matplotlib", "numpy", "pandas", "pyarrow", "safetensors", "sklearn", "torch"}),
    "runs": frozenset({"psutil", "yaml"}),
    "recovery": frozenset(),
    "worker": frozenset({"numpy", "torch"}),
    "runners": frozenset({"aiohttp", "ax", "numpy", "optuna", "psutil", "ray", "requests", "torch"}),
    "scheduling": frozenset({"ray"}),
    "local_cluster": frozenset({"filelock", "psutil", "ray"}),
    "cli": frozenset({"rich", "typer", "yaml"}),
    "__main__": frozenset(),
    "__init__": frozenset(),
}
"""Lowest first. A layer may import itself, those before it, the standard library, and what it lists here."""

ONE_FILE: dict[str, str | None] = {
    "adbc_driver_postgresql": "data/sources/databases.py",
    "fsspec": "data/sources/remote.py",
    "mlflow": "tracking/mlflow_sink/",
    "pymongo": "data/sources/databases.py",
    "pynvml": None,
}
"""Packages that one file alone may import, or one folder (`…/`); None where any file of the layers that list it may
be the one."""

HEAVY = ("torch", "torchvision", "ray", "mlflow", "pandas", "pyarrow", "sklearn", "matplotlib")
"""What a command that only reads a spec has no time to load."""

IMPORTERS = ("import_module", "__import__", "import_optional")
"""Functions that import what their first argument names."""


@dataclass(frozen=True)
class Import:
    """One imported name: the module that imports, the dotted name it asks for, and where (`file:line`).

    `at_import`: it runs when the module is imported; it stands in no function and is not for types only.
    """

    module: str
    target: str
    place: str
    at_import: bool


def imports_of(root: Path) -> list[Import]:
    """All that the package in the folder `root` imports, wherever the imports stand."""
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root.parent)
        package = relative.parent.parts
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for node, at_import in _walk(tree, at_import=True):
            place = f"{relative.as_posix()}:{getattr(node, 'lineno', 0)}"
            found += [
                Import(_module_name(relative), name, place, at_import) for name in _names(node, package)
            ]
    return found


def _module_name(relative: Path) -> str:
    """`pkg/data/order.py` is `pkg.data.order`, `pkg/data/__init__.py` is `pkg.data`."""
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _walk(node: ast.AST, *, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        yield child, at_import
        in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _walk(child, at_import=at_import and not in_function and not for_types)


def _names(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    """The dotted names that a node imports; `from a.b import c` gives `a.b.c`, module or not."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            parts = [*package[: len(package) - level + 1]] if level else []
            return [".".join([*parts, *([module] if module else []), alias.name]) for alias in names]
        case ast.Call(
            func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(target)), *_]
        ):
            return [target] if name in IMPORTERS else []
    return []


def _layer(module: str, layers: Mapping[str, object]) -> str:
    """The layer of one of our modules. What is neither module nor package is a name in `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in layers else "__init__"


def violations(
    root: Path, layers: Mapping[str, frozenset[str]] = LAYERS, one_file: Mapping[str, str | None] = ONE_FILE
) -> list[str]:
    """What the package in `root` does against the rules, one line each: the place, the deed, the rule."""
    height = {layer: index for index, layer in enumerate(layers)}
    there = {path.stem for path in root.iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))}
    faults = [f"{root.name}/{name}: has no place among the LAYERS" for name in sorted(there - set(layers))]
    files: dict[str, dict[str, str]] = {package: {} for package in one_file}
    for item in imports_of(root):
        layer = _layer(item.module, layers)
        top = item.target.split(".")[0]
        if top == root.name:
            target = _layer(item.target, layers)
            if height[target] > height[layer] and item.target != f"{root.name}.__version__":
                faults.append(f"{item.place}: {layer} imports {item.target}, but {target} stands above it")
        elif top not in sys.stdlib_module_names:
            if top not in layers[layer]:
                allowed = ", ".join(sorted(layers[layer])) or "nothing but the standard library"
                faults.append(f"{item.place}: {layer} imports {top}; from outside it may import {allowed}")
            if top in files:
                files[top].setdefault(item.place.rpartition(":")[0], item.place)
    for package, places in files.items():
        home = f"{root.name}/{one_file[package]}" if one_file[package] else min(places, default="")
        inside = {path for path in places if path == home or (home.endswith("/") and path.startswith(home))}
        for path in sorted(places.keys() - inside):
            faults.append(f"{places[path]}: imports {package}, which {home} alone may import")
    return faults


def cycle(edges: Iterable[tuple[str, str]]) -> list[str] | None:
    """The nodes of one cycle in a graph, the first one again at the end; None where there is none."""
    graph: dict[str, set[str]] = {}
    for importer, imported in edges:
        if importer != imported:
            graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None


def module_edges(root: Path) -> list[tuple[str, str]]:
    """Which of our modules loads which other one when it is imported."""
    items = [item for item in imports_of(root) if item.at_import]
    modules = {_module_name(path.relative_to(root.parent)) for path in root.rglob("*.py")}

    def owner(target: str) -> str:
        return target if target in modules else target.rpartition(".")[0]

    return [
        (item.module, owner(item.target)) for item in items if owner(item.target) in modules - {root.name}
    ]


def layer_edges(root: Path, layers: Mapping[str, object] = LAYERS) -> list[tuple[str, str]]:
    """Which layer imports which, functions and types included."""
    items = [item for item in imports_of(root) if item.target.split(".")[0] == root.name]
    return [
        (_layer(item.module, layers), _layer(item.target, layers))
        for item in items
        if item.target != f"{root.name}.__version__"
    ]


def test_the_package_keeps_its_import_rules() -> None:
    faults = violations(ROOT)
    assert not faults, "\n".join(["imports against the rules:", *faults])


def test_no_packages_import_each_other() -> None:
    assert cycle(layer_edges(ROOT)) is None


def test_no_modules_import_each_other() -> None:
    assert cycle(module_edges(ROOT)) is None


BAD = {
    "__init__.py": "from bad.top import run\n",
    "low.py": "import json\nimport torch\n",
    "middle/__init__.py": "",
    "middle/one.py": """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from bad import __version__, run
        from bad.middle import two
        if TYPE_CHECKING:
            from bad.top import Job
        def work():
            import importlib
            import yaml, torch.nn
            importlib.import_module("mlflow.client")
    """,
    "middle/two.py": "from . import one\nfrom ..top import Job\nimport torch\nimport numpy as np\n",
    "top.py": "import low_not_ours, torch\nimport bad.middle.one\nfrom bad.low import x\n",
    "stray/it.py": "import torch\n",
}
BAD_LAYERS = {
    "low": frozenset(),
    "middle": frozenset({"torch", "numpy", "mlflow"}),
    "top": frozenset({"torch"}),
    "__init__": frozenset(),
}


def made_up_package(folder: Path, files: Mapping[str, str]) -> Path:
    for name, source in files.items():
        path = folder / "bad" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source))
    return folder / "bad"


def test_the_checker_finds_what_it_should(tmp_path: Path) -> None:
    root = made_up_package(tmp_path, BAD)
    faults = violations(root, BAD_LAYERS, {"mlflow": "middle/sink.py", "numpy": None, "torch": "top.py"})
    assert sorted(faults) == sorted(
        [
            "bad/stray: has no place among the LAYERS",
            "bad/low.py:2: low imports torch; from outside it may import nothing but the standard library",
            "bad/low.py:2: imports torch, which bad/top.py alone may import",
            "bad/middle/one.py:4: middle imports bad.run, but __init__ stands above it",
            "bad/middle/one.py:7: middle imports bad.top.Job, but top stands above it",
            "bad/middle/one.py:10: middle imports yaml; from outside it may import mlflow, numpy, torch",
            "bad/middle/one.py:10: imports torch, which bad/top.py alone may import",
            "bad/middle/one.py:11: imports mlflow, which bad/middle/sink.py alone may import",
            "bad/middle/two.py:2: middle imports bad.top.Job, but top stands above it",
            "bad/middle/two.py:3: imports torch, which bad/top.py alone may import",
            "bad/top.py:1: top imports low_not_ours; from outside it may import torch",
            "bad/stray/it.py:1: __init__ imports torch; from outside it may import "
            "nothing but the standard library",
            "bad/stray/it.py:1: imports torch, which bad/top.py alone may import",
        ]
    )


def test_a_folder_may_be_the_only_place(tmp_path: Path) -> None:
    root = made_up_package(tmp_path, {"__init__.py": "", "middle/sink/a.py": "import mlflow"})
    assert violations(root, BAD_LAYERS, {"mlflow": "middle/sink/"}) == []
    assert violations(root, BAD_LAYERS, {"mlflow": "middle/sin/"}) == [
        "bad/middle/sink/a.py:1: imports mlflow, which bad/middle/sin/ alone may import"
    ]


def test_the_checker_finds_cycles(tmp_path: Path) -> None:
    root = made_up_package(tmp_path, BAD)
    assert set(cycle(layer_edges(root, BAD_LAYERS)) or ()) >= {"middle", "top"}
    assert set(cycle(module_edges(root)) or ()) == {"bad.middle.one", "bad.middle.two"}
    lazy = made_up_package(
        tmp_path / "lazy", {"a.py": "import bad.b\n", "b.py": "def f():\n    import bad.a\n"}
    )
    assert cycle(module_edges(lazy)) is None


def test_a_sound_package_has_no_faults(tmp_path: Path) -> None:
    files = {"low.py": "import json", "middle/a.py": "from bad.low import x\nimport torch", "__init__.py": ""}
    root = made_up_package(tmp_path, files)
    assert violations(root, BAD_LAYERS, {"torch": None}) == []


def loaded_after(code: str, names: Iterable[str]) -> list[str]:
    """Those of the named modules that are loaded in a fresh interpreter after it ran the code."""
    report = f"\nimport json, sys\nprint(json.dumps([name for name in {list(names)} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", dedent(code) + report],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result: list[str] = json.loads(done.stdout.splitlines()[-1])
    return result


def after_command(*arguments: str) -> list[str]:
    """Those of the heavy packages that `orchestrator <arguments>` loads; it must end with exit code 0."""
    code = f"""
        import sys
        from orchestrator.__main__ import main
        sys.argv = ["orchestrator", *{list(arguments)}]
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        assert not code, code
    """
    return loaded_after(code, HEAVY)


def test_the_engine_loads_neither_ray_nor_mlflow() -> None:
    code = """
        import importlib, pkgutil, orchestrator.engine as engine
        for module in pkgutil.walk_packages(engine.__path__, "orchestrator.engine."):
            importlib.import_module(module.name)
    """
    assert loaded_after(code, ["ray", "mlflow", "torch"]) == ["torch"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import orchestrator", HEAVY) == []


def test_help_loads_nothing_heavy() -> None:
    assert after_command("--help") == []


def test_validate_loads_nothing_heavy(tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(
        """\
name: digits
data:
  source: {kind: sklearn, name: digits}
  target: target
model: {name: cnn}
train: {max_epochs: 1}
"""
    )
    assert after_command("validate", str(spec)) == []
