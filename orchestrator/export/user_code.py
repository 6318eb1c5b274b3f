"""The user's own modules of a model: found by reading, carried with it, imported from there.

Nothing is imported to find them: modules are located by name and their imports read from the text.
Imports: the standard library only.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import UserCodeError

_OWN_PACKAGE = __name__.partition(".")[0]


def find_modules(names: Iterable[str], search_paths: Sequence[str | Path]) -> dict[str, tuple[Path, Path]]:
    """These modules and all that they import, as far as they lie under the search paths (the first wins).

    By module name: its file, and that file's path relative to the search path. Left out are installed
    packages, the standard library, and what is imported by `importlib` at run time. Raises UserCodeError for
    a file that is no Python.
    """
    roots = [Path(path).resolve() for path in search_paths]
    found: dict[str, tuple[Path, Path]] = {}
    waiting = list(names)
    while waiting:
        for module, file, root in _files_of(waiting.pop(), roots):
            if module in found:
                continue
            found[module] = (file, file.relative_to(root))
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            try:
                waiting += _imports(file.read_text(encoding="utf-8"), package)
            except (SyntaxError, ValueError) as error:
                raise UserCodeError(f"{file} cannot be read as Python: {error}") from error
    return dict(sorted(found.items()))


@contextmanager
def imported_from(folder: Path, modules: Iterable[str]) -> Iterator[None]:
    """Within the block these modules are imported from the folder, whatever was imported before.

    Modules of the same name from elsewhere are set aside and put back afterwards, so that two models with
    different `my_model.py` live in one process, each with its own. Only an import inside a function that runs
    after the block sees what was put back. Where there was none, the folder's modules stay imported.
    """
    tops = {module.partition(".")[0] for module in modules}
    if not tops:
        yield
        return
    aside = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}
    _forget(tops)
    writes_bytecode, sys.dont_write_bytecode = (
        sys.dont_write_bytecode,
        True,
    )  # the folder stays as it was hashed
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes_bytecode
        _forget({name.partition(".")[0] for name in aside})
        sys.modules.update(aside)


def _forget(tops: set[str]) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in tops:
            del sys.modules[name]


def _files_of(name: str, roots: Sequence[Path]) -> Iterator[tuple[str, Path, Path]]:
    """The files that importing a module runs, with their module names and search path: the `__init__` of the
    packages around it, then its own."""
    parts = name.split(".")
    if parts[0] == _OWN_PACKAGE or parts[0] in sys.stdlib_module_names:
        return
    for root in roots:
        files = []
        for depth in range(1, len(parts) + 1):
            base = root.joinpath(*parts[:depth])
            for file in (base / "__init__.py", base.with_suffix(".py")):
                if file.is_file():
                    files.append((".".join(parts[:depth]), file, root))
                    break
        if files:
            yield from files
            return


def _imports(source: str, package: str) -> Iterator[str]:
    """Names of the modules, and of what may be modules, that a source text imports anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".") if package and node.level else []
            base = around[: max(0, len(around) - node.level + 1)]
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module:
                yield module
            prefix = f"{module}." if module else ""
            yield from (f"{prefix}{alias.name}" for alias in node.names if alias.name != "*")
