"""torchvision that imports whether or not its compiled operators match the installed torch.

A torchvision built for another torch (as the CUDA build beside a CPU torch) cannot load its `_C` library, and
then refuses to import at all: `operator torchvision::nms does not exist`. Its models, data sets and
transforms are plain Python, so the two operators it asks for are defined here first, and what
really needs compiled code says so by name when it is called. Where the operators load, nothing is touched.
Imports: torch and torchvision, inside functions.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from orchestrator.errors import MissingPackage

# Asked for while torchvision is imported; all others only when they are called.
_ASKED_FOR_AT_IMPORT = ("nms", "qnms")
# (For roi_align torchvision has a Python version to fall back on; torch.compile must build that first, which
# takes a C++ compiler and the better part of a minute, so it is refused with the others.)
_DETECTION = ("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_FILE_VERBS = ("decode_", "encode_", "read_", "write_")

_stand_ins: list[Any] = []  # torch forgets the operators of a Library that is collected


def prepare_torchvision() -> None:
    """Make a later `import torchvision`, or an import of what imports it (torchmetrics), succeed.

    Does not import torchvision; does nothing where torchvision is not installed, was imported already, or has
    operators that load. May be called any number of times.
    """
    if _stand_ins or "torchvision" in sys.modules or _compiled_operators_load():
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _ASKED_FOR_AT_IMPORT:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            for backend in ("CPU", "CUDA"):
                library.impl(name, _refusal(name), backend)
    _stand_ins.append(library)


def import_torchvision() -> ModuleType:
    """The torchvision package. Without its compiled operators, each function that needs one raises
    MissingPackage with the function's name, both versions and the mend.

    Raises MissingPackage where torchvision is not installed.
    """
    prepare_torchvision()
    try:
        import torchvision
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise MissingPackage("torchvision is not installed", "pip install torchvision") from error
    if not torchvision.extension._has_ops():
        for name in _DETECTION:
            _replace(torchvision.ops, name)
        # Boxes with an angle need compiled code too, inside a function that works for all others.
        sys.modules["torchvision.ops.boxes"]._assert_has_ops = _refusal("box_iou_rotated")  # type: ignore[attr-defined]
    if not torchvision.io.image._has_image_ops():
        for name in torchvision.io.__all__:
            if name.startswith(_FILE_VERBS):
                _replace(torchvision.io, name)
    return torchvision  # type: ignore[no-any-return]


def _compiled_operators_load() -> bool:
    """Load torchvision's `_C` library, as torchvision itself does when it is imported (twice is harmless).

    True where it loads, and where there is no torchvision.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return True
    import torch

    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    folder = next(iter(package.submodule_search_locations))
    library = importlib.machinery.FileFinder(folder, loader).find_spec("_C")
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except OSError:
        return False
    return True


def _replace(package: ModuleType, name: str) -> None:
    """Put a refusal in the place of a function, in every module of torchvision that holds it by this name."""
    function = getattr(package, name)
    refusal = functools.wraps(function)(_refusal(name))
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("torchvision.") and getattr(module, name, None) is function:
            setattr(module, name, refusal)


def _refusal(name: str) -> Callable[..., Any]:
    """A function that takes anything and raises MissingPackage in this operator's name."""

    def refuse(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG001 - stands in for any signature
        import torch

        build = torch.__version__.partition("+")
        index = f" --index-url https://download.pytorch.org/whl/{build[2]}" if build[2] else ""
        instead = ", or decode with Pillow" if name.startswith(_FILE_VERBS) else ""
        raise MissingPackage(
            f"torchvision's compiled operator '{name}' cannot be loaded: torch {torch.__version__} and "
            f"torchvision {importlib.metadata.version('torchvision')} were not built for each other",
            "install the torchvision that was built for this torch: "
            f"pip install --force-reinstall torch=={build[0]} torchvision{index}{instead}",
        )

    return refuse
