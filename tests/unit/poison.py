"""A process that takes itself down, is poisoned in every way that is known, and is put back: run as a script.

Prints what it was before, when poisoned, and after, as JSON. Its argument is the folder of the user's modules.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.worker.pristine import Pristine

HEARD: list[str] = []
KNOWN = logging.getLogger("poison.known")


def hear(name: str) -> Any:
    return lambda *_, **__: HEARD.append(name)


def small_step() -> None:
    """A training step that every global hook hears."""
    model = torch.nn.Linear(2, 2, dtype=torch.float64, device="cpu")
    model.add_module("bias_of", torch.nn.Identity())
    model.register_buffer("count", torch.zeros(1, device="cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.device("cpu"):
        model(torch.ones(1, 2, dtype=torch.float64, requires_grad=True)).sum().backward()
    optimizer.step()


def facts() -> dict[str, Any]:
    """How the process behaves, asked of torch, numpy and Python themselves."""
    HEARD.clear()
    small_step()
    flags = {
        f"{name}.{flag}": getattr(getattr(torch.backends, name), flag)
        for name, flag in [
            ("cudnn", "enabled"),
            ("cudnn", "benchmark"),
            ("cudnn", "deterministic"),
            ("cudnn", "allow_tf32"),
            ("mkldnn", "enabled"),
            ("mkldnn", "deterministic"),
        ]
    }
    return {
        **flags,
        "dtype": str(torch.ones(1, device="cpu").dtype),
        "device": str(torch.ones(1).device),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "hooks": sorted(set(HEARD)),
        "kind of hooks": str(torch.nn.modules.module._global_is_full_backward_hook),
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "search path": list(sys.path),
        "warnings": [str(one) for one in warnings.filters],
        "root level": logging.root.level,
        "known level": KNOWN.level,
        "new level": logging.getLogger("poison.new").level,
        "errors are logged": KNOWN.isEnabledFor(logging.ERROR),
        "handlers": len(logging.root.handlers),
        "numpy errors": np.geterr(),
        "recursion": sys.getrecursionlimit(),
        "collects": gc.isenabled(),
        "own module": list(importlib.import_module("own_net").SEEN),
        "own module in a folder": list(importlib.import_module("space.part").SEEN),
        "the same by its folder": list(importlib.import_module("space").part.SEEN),
    }


def poison() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.autograd.set_detect_anomaly(True)
    for flag in ("enabled", "benchmark", "deterministic", "allow_tf32"):
        setattr(torch.backends.cudnn, flag, not getattr(torch.backends.cudnn, flag))
    torch.backends.mkldnn.enabled = False
    torch.backends.mkldnn.deterministic = True
    hooks, optimizers = torch.nn.modules.module, importlib.import_module("torch.optim.optimizer")
    hooks.register_module_forward_hook(hear("forward"), always_call=True)
    hooks.register_module_forward_hook(hear("forward with keywords"), with_kwargs=True)
    hooks.register_module_forward_pre_hook(hear("before forward"))
    hooks.register_module_full_backward_hook(hear("backward"))
    hooks.register_module_full_backward_pre_hook(hear("before backward"))
    hooks.register_module_buffer_registration_hook(hear("buffer"))
    hooks.register_module_module_registration_hook(hear("module"))
    hooks.register_module_parameter_registration_hook(hear("parameter"))
    optimizers.register_optimizer_step_pre_hook(hear("before step"))
    optimizers.register_optimizer_step_post_hook(hear("after step"))
    os.environ["POISON"] = "1"
    os.environ["POISON_KNOWN"] = "changed"
    del os.environ["POISON_GONE"]
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    for name in (None, "poison.known", "poison.new"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    logging.root.addHandler(logging.NullHandler())
    np.seterr(all="raise")
    sys.setrecursionlimit(sys.getrecursionlimit() + 1000)
    gc.disable()
    importlib.import_module("own_net").SEEN.append("poison")
    importlib.import_module("space.part").SEEN.append("poison")


def stays() -> dict[str, int]:
    """What is not the user's: who it is after each import."""
    names = ("installed_net", "orchestrator.recovery.sizing", "decimal")
    return {name: id(importlib.import_module(name)) for name in names}


def main(folder: str) -> None:
    sys.path += [folder, f"{folder}/env/lib/site-packages"]
    os.environ |= {"POISON_KNOWN": "as it was", "POISON_GONE": "there"}
    KNOWN.setLevel(logging.WARNING)
    importlib.import_module("torch._dynamo")  # as a worker does
    pristine = Pristine.taken()
    homes = [folder, str(Path(__file__).parents[2]), str(Path(os.__file__).parent)]
    told: list[Any] = [facts()]
    kept = [stays()]
    for _ in range(2):
        poison()
        told.append(facts())
        pristine.restore(homes)
        told.append(facts())
        kept.append(stays())
    torch.nn.modules.module.register_module_backward_hook(hear("of the other kind")).remove()
    print(json.dumps({"facts": told, "kept": kept}))


if __name__ == "__main__":
    main(sys.argv[1])
