"""A bundle as MLflow's pyfunc flavour sees it: the loader that MLflow calls, and what it records of a model.

`save_model(loader_module="orchestrator.export.pyfunc", data_path=<bundle>, …)` makes a model that takes raw
rows. MLflow itself is not imported. Imports: `export.bundle` and what it imports.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.export.bundle import Bundle, load_bundle

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.data.pipeline import Pipeline

_SCORING_PACKAGES = ("numpy", "pandas", "pillow", "pyarrow", "pydantic", "safetensors", "torch")
# MLflow widens a column and never narrows it: the widest of a kind takes what pandas and JSON give.
_COLUMN_TYPES = {"b": "boolean", "i": "long", "u": "long", "f": "double"}


class PyfuncModel:
    """What MLflow's `load_model` wraps: raw rows in, a DataFrame of predictions out."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """Predictions as `Bundle.predict` gives them. MLflow passes `params`; there are none."""
        return self.bundle.predict(model_input)


def _load_pyfunc(path: str) -> PyfuncModel:
    """Called by MLflow with the path of the bundle inside the logged model."""
    return PyfuncModel(load_bundle(path))


def signature(pipeline: Pipeline, task: str) -> dict[str, str | None]:
    """The raw rows and the predictions, in the form of MLflow's `ModelSignature.to_dict()`.

    Arrays are one tensor, encoded images one binary column, tables a column each.
    """
    schema = pipeline.raw_schema
    if schema.kind == "array":
        tensor = {"dtype": schema.dtypes[0], "shape": [-1, *schema.shape]}
        inputs: list[dict[str, Any]] = [{"type": "tensor", "tensor-spec": tensor}]
    elif schema.kind == "encoded_image":
        inputs = [_column(schema.columns[0], "binary")]
    else:
        inputs = [
            _column(name, _column_type(dtype))
            for name, dtype in zip(schema.columns, schema.dtypes, strict=True)
        ]
    classes = [] if task == "regression" else pipeline.classes or []
    outputs = [_column("prediction", _label_type(classes) if classes else "double")]
    outputs += [_column(f"probability_{label}", "double") for label in classes]
    return {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None}


def code_paths() -> list[str]:
    """Folders to ship with a logged model: this package, as it is here. The user's code is in the bundle."""
    return [str(Path(__file__).resolve().parents[1])]


def pip_requirements(model_name: str) -> list[str]:
    """What scoring needs, pinned to the versions installed here; `model_name` is the spec's `model.name`.

    Without a local suffix such as `+cpu`: whoever scores chooses the build.
    """
    packages = [*_SCORING_PACKAGES, *(["torchvision"] if model_name.startswith("torchvision/") else [])]
    return [f"{name}=={version(name).partition('+')[0]}" for name in packages]


def _column(name: str, kind: str) -> dict[str, Any]:
    return {"type": kind, "name": name, "required": True}


def _column_type(dtype: str) -> str:
    import numpy as np

    return _COLUMN_TYPES[np.dtype(dtype).kind]


def _label_type(classes: list[Any]) -> str:
    if isinstance(classes[0], bool):
        return "boolean"
    return "long" if isinstance(classes[0], int) else "string"
