"""Load `module:object` from the user's code, and explain optional packages that are missing.

Imports: the standard library only.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.errors import MissingPackage, UsageError, UserCodeError


def add_search_paths(paths: Iterable[str | Path]) -> None:
    """Let user code be imported from these folders, before what is installed."""
    for path in reversed([str(Path(path).resolve()) for path in paths]):
        if path not in sys.path:
            sys.path.insert(0, path)


def load_object(path: str) -> Any:
    """The object that `module:object` names, dots allowed on both sides.

    Raises UsageError where the module or the object does not exist, and UserCodeError where the module
    itself raises while it is imported.
    """
    module_name, _, attribute = path.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserCodeError(
                f"module '{module_name}' needs '{error.name}', which is not installed",
                f"install it, or name it under runtime_env.pip (for '{path}')",
            ) from error
        raise _not_found(path) from error
    except Exception as error:
        raise UserCodeError(f"module '{module_name}' raised {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise _no_object(module_name, attribute, path, dir(target))
        target = getattr(target, part)
    return target


def check_object(path: str) -> None:
    """Raise UsageError where `module:object` cannot be there, as far as its source tells; nothing of it is run."""
    module_name, _, attribute = path.partition(":")
    try:
        found = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:  # of `a.b` there is no package `a`
        found = None
    except (ImportError, ValueError):  # what is there cannot be looked at; importing it will tell
        return
    if found is None:
        raise _not_found(path)
    if found.origin is None or not found.origin.endswith(".py"):
        return
    try:
        bound = _bound_names(ast.parse(Path(found.origin).read_bytes()))
    except (OSError, SyntaxError, ValueError):  # importing it will tell
        return
    name = attribute.partition(".")[0]
    if bound is not None and name not in bound:
        raise _no_object(module_name, attribute, path, bound)


def _bound_names(tree: ast.Module) -> set[str] | None:
    """The names that a module's code binds anywhere; None where it may bind others, unseen."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name):
            if node.id in {"globals", "exec", "setattr", "vars"}:
                return None
            if isinstance(node.ctx, ast.Store):
                names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
    return None if names & {"*", "__getattr__"} else names


def _no_object(module_name: str, attribute: str, path: str, names: Iterable[str]) -> UsageError:
    close = difflib.get_close_matches(attribute, names, n=1)
    return UsageError(
        f"module '{module_name}' has no '{attribute}' (for '{path}')",
        f"did you mean '{close[0]}'?" if close else "",
    )


def _not_found(path: str) -> UsageError:
    module_name = path.partition(":")[0]
    searched = ", ".join(entry or "." for entry in sys.path[:3])
    return UsageError(
        f"no module '{module_name}' (for '{path}')",
        f"put {module_name.split('.')[0]}.py next to the spec or into the working directory; "
        f"searched first: {searched}",
    )


def import_optional(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package; raises MissingPackage that names the extra to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{purpose} needs the package '{name.split('.')[0]}'",
            f"install it with: pip install 'ray-orchestrator[{extra}]'",
        ) from error
