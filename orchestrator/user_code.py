"""The user's own modules: found, hashed, and imported from the folder that a model carries them in.

Nothing is imported to find them: modules are located by name, as Python would, and their imports are read
from the text. Imports: the standard library only.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_OWN_PACKAGE = __name__.partition(".")[0]
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class UserModule:
    """A module's file: its path from the search path on, its content, and why it is no Python, if so."""

    relative: PurePosixPath
    content: bytes
    fault: str | None = None


def find_modules(names: Iterable[str], search_paths: Sequence[str | Path]) -> dict[str, UserModule]:
    """These modules, the packages around them and all that they import, by name, as far as they lie under the
    search paths.

    Left out are installed packages, the orchestrator itself, modules that are called as one of the standard
    library (unless `names` has them), and what is imported by `importlib` at run time.
    """
    names = list(names)
    roots = [Path(path).resolve() for path in search_paths]
    roots = [root for root in roots if root.name not in _INSTALLED]
    standard = sys.stdlib_module_names - set(map(_top, names))
    return _reachable(names, roots, lambda imported: _top(imported) not in standard)


def hash_modules(names: Iterable[str], search_paths: Sequence[str | Path]) -> str:
    """SHA-256 (hex) of these modules and the user's modules that they import.

    It depends on names and content only: not on paths, times or order. Modules that are not under the search
    paths but installed count by the version of their distribution or, where they have none, by the content of
    their package. Those that are nowhere are left out: loading them says what is wrong.
    """
    named = set(names)
    modules = find_modules(named, search_paths)
    facts = _hashes(modules)
    elsewhere = {name for name in named if _top(name) not in set(map(_top, modules))}
    for name in elsewhere:
        facts |= _installed(name)
    return _sha256(json.dumps(facts, sort_keys=True).encode())


@contextmanager
def imported_from(folder: Path, modules: Iterable[str]) -> Iterator[None]:
    """Within the block these modules are imported from the folder, whatever was imported before.

    Modules of the same name from elsewhere are set aside and put back afterwards, so that two models with
    different `my_model.py` live in one process, each with its own. Only an import inside a function that runs
    after the block sees what was put back. Where there was none, the folder's modules stay imported.
    """
    tops = set(map(_top, modules))
    if not tops:
        yield
        return
    aside = {name: module for name, module in sys.modules.items() if _top(name) in tops}
    _forget(tops)
    writes_bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the folder stays as it was hashed
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes_bytecode
        _forget(set(map(_top, aside)))
        sys.modules.update(aside)


def _forget(tops: set[str]) -> None:
    for name in list(sys.modules):
        if _top(name) in tops:
            del sys.modules[name]


def _reachable(
    names: Iterable[str], roots: Sequence[Path], follow: Callable[[str], bool]
) -> dict[str, UserModule]:
    """The modules under the roots, and what they import where `follow` says so of the imported name."""
    found: dict[str, UserModule] = {}
    waiting = list(names)
    while waiting:
        for name, file, is_package in _files_of(waiting.pop(), roots):
            if name in found:
                continue
            content, fault = b"", None
            try:
                content = file.read_bytes()
                imported = _imports(content, name if is_package else name.rpartition(".")[0])
                waiting += filter(follow, imported)
            except (OSError, SyntaxError, ValueError) as error:
                fault = f"{file} cannot be read as Python: {error}"
            base = PurePosixPath(*name.split("."))
            relative = base / "__init__.py" if is_package else base.with_suffix(".py")
            found[name] = UserModule(relative, content, fault)
    return dict(sorted(found.items()))


def _files_of(name: str, roots: Sequence[Path]) -> Iterator[tuple[str, Path, bool]]:
    """Name and file of what importing a module runs, the packages around it first, and whether each is a
    package. Where a name goes on into a module's attributes, it ends with that module."""
    parts = name.split(".")
    if parts[0] == _OWN_PACKAGE or not all(map(str.isidentifier, parts)):
        return
    places = list(roots)
    for depth, part in enumerate(parts, 1):
        file, places = _locate(part, places)
        if file is not None:
            yield ".".join(parts[:depth]), file, bool(places)


def _locate(part: str, places: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """The file that runs for one part of a module's name, and the folders where the next part may lie: none
    for a plain module. A namespace package has no file, and may have many folders."""
    for place in places:
        if (file := place / part / "__init__.py").is_file():
            return file, [place / part]
        if (file := place / f"{part}.py").is_file():
            return file, []
    return None, [place / part for place in places if (place / part).is_dir()]


def _imports(source: bytes, package: str) -> list[str]:
    """Names of the modules, and of what may be modules, that a source imports anywhere in it. `package` is
    what its relative imports start from. Raises SyntaxError or ValueError for what is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the user's strings: importing them warns soon enough
        tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # a relative import that leaves its package: Python refuses it too
                continue
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return found


def _installed(name: str) -> dict[str, str]:
    """What tells this version of an installed module from others; nothing where it is not installed."""
    top = _top(name)
    try:
        spec = None if top == _OWN_PACKAGE else importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module that somebody made by hand
        return {}
    if spec is None:
        return {}
    places = spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else [])
    roots = [Path(place).resolve().parent for place in places]
    if any(root.name in _INSTALLED for root in roots):  # else it is installed as editable: its text counts
        distributions = set(importlib.metadata.packages_distributions().get(top, ()))
        if distributions:
            versions = [f"{found} {importlib.metadata.version(found)}" for found in sorted(distributions)]
            return {name: ", ".join(versions)}
    return _hashes(_reachable([name], roots, lambda imported: _top(imported) == top))


def _hashes(modules: dict[str, UserModule]) -> dict[str, str]:
    return {name: _sha256(module.content) for name, module in modules.items()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _top(name: str) -> str:
    return name.partition(".")[0]
