"""What a bundle says of itself, and what MLflow records of a model, without building the model.

Imports: data (no torch), storage, the standard library.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from orchestrator.data.features.encoders import Encoder
    from orchestrator.data.features.pipeline import Pipeline

FORMAT = 1
MANIFEST = "bundle.json"
WEIGHTS = "model.safetensors"
LOADER_MODULE = "orchestrator.export.pyfunc"

_SCORING_PACKAGES = (
    *("numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors", "simplejpeg", "torch"),
)
# MLflow widens a column and never narrows it: the widest of a kind takes what pandas and JSON give.
_COLUMN_TYPES = {"b": "boolean", "i": "long", "u": "long", "f": "double", "U": "string"}


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What `bundle.json` of a local bundle says.

    Raises UsageError where there is no bundle, or one of another format; CheckpointError where it is damaged.
    """
    file = Path(folder) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
        written = manifest.get("format")
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no model bundle: there is no {MANIFEST}") from error
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}", "export the model again") from error
    if written != FORMAT:
        raise UsageError(
            f"{folder} is a model bundle of format {written}; this version reads format {FORMAT}",
            "use the version of the orchestrator that wrote it, or export the model again",
        )
    return manifest


def pyfunc_fields(folder: str | Path) -> dict[str, Any]:
    """What MLflow is told of a local bundle: `loader_module`, `code_paths`, `pip_requirements`, `signature`
    as `ModelSignature.to_dict()` gives it, and `input_example`, the name of a file in the bundle."""
    manifest = read_manifest(folder)
    return {
        "loader_module": LOADER_MODULE,
        "code_paths": tuple(code_paths()),
        "pip_requirements": tuple(manifest["pip_requirements"]),
        "signature": manifest["signature"],
        "input_example": manifest["input_example"],
    }


def signature(pipeline: Pipeline, task: str) -> dict[str, str | None]:
    """The raw rows and the predictions, in the form of MLflow's `ModelSignature.to_dict()`.

    Arrays are one tensor, encoded images one binary column, texts one string column, tables a column each, of
    strings too where these are encoded.
    """
    schema = pipeline.raw_schema
    if schema.kind == "array":
        tensor = {"dtype": schema.dtypes[0], "shape": [-1, *schema.shape]}
        inputs: list[dict[str, Any]] = [{"type": "tensor", "tensor-spec": tensor}]
    elif schema.kind == "encoded_image":
        inputs = [_column(schema.columns[0], "binary")]
    elif schema.kind == "text":
        inputs = [_column(schema.columns[0], "string")]
    else:
        inputs = [
            _column(name, _column_type(pipeline.sent[name], None))
            if name in pipeline.sent
            else _column(name, _column_type(dtype, pipeline.encoders.get(name)))
            for name, dtype in zip(schema.columns, schema.dtypes, strict=True)
        ]
    classes = pipeline.classes or []
    kind = "string" if task == "language_modeling" else _label_type(classes) if classes else "double"
    outputs = [_column("prediction", kind)]
    if task == "multilabel":
        outputs = [{"type": "array", "items": {"type": kind}} | _column("prediction", "array")]
    outputs += [_column(f"probability_{label}", "double") for label in classes]
    return {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None}


def code_paths() -> list[str]:
    """Folders to ship with a logged model: this package, as it is here. The user's code is in the bundle."""
    return [str(Path(__file__).resolve().parents[1])]


def pip_requirements(model_name: str, pipeline: Pipeline | None = None) -> list[str]:
    """What scoring needs, pinned to the versions installed here; `model_name` is the spec's `model.name`, and the
    pipeline's tokenizer may need a library.

    Without a local suffix such as `+cpu`: whoever scores chooses the build.
    """
    packages = [*_SCORING_PACKAGES, *(["torchvision"] if model_name.startswith("torchvision/") else [])]
    if pipeline is not None and pipeline.tokenizer is not None and pipeline.tokenizer.kind == "bpe":
        packages.append("tokenizers")
    return [f"{name}=={version(name).partition('+')[0]}" for name in packages]


def _column(name: str, kind: str) -> dict[str, Any]:
    return {"type": kind, "name": name, "required": True}


def _column_type(dtype: str, encoder: Encoder | None) -> str:
    import numpy as np

    kind = _COLUMN_TYPES[np.dtype(dtype).kind]
    # Integers among which are nulls are floats to pandas and to MLflow.
    return "double" if kind == "long" and encoder is not None and None in encoder.categories else kind


def _label_type(classes: list[Any]) -> str:
    if isinstance(classes[0], bool):
        return "boolean"
    return "long" if isinstance(classes[0], int) else "string"
