"""The model bundle: all that prediction needs, in one folder, with hashes.

    bundle.json              model, task, shapes, fitted pipeline, versions, sha256 of every other file
    model.safetensors        the weights
    input_example.npy|json   a few raw rows
    code/                    the user's own modules, where the model is one of theirs

User code is always imported from the bundle, even where a module of the same name was imported from elsewhere
before (see `user_code.imported_from`): what a model was trained with is what runs.
Imports: numpy, pyarrow, torch, safetensors; pandas inside functions.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor, nn

from orchestrator.data.columns import array_values, image_bytes
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema
from orchestrator.data.features.tokens import FIRST_TOKEN, PADDING
from orchestrator.errors import CheckpointError, DataError, UserCodeError
from orchestrator.export.manifest import FORMAT, MANIFEST, WEIGHTS, pip_requirements, read_manifest, signature
from orchestrator.models.build import build_model
from orchestrator.spec.model import ModelSection
from orchestrator.storage import Folder
from orchestrator.user_code import find_modules, imported_from

if TYPE_CHECKING:
    import pandas as pd

_VERSIONS_OF = ("numpy", "pyarrow", "safetensors", "torch")


def write_bundle(
    folder: Folder,
    *,
    model: ModelSection,
    model_state: Mapping[str, Tensor],
    pipeline: Pipeline,
    task: str,
    num_outputs: int,
    input_example: pa.Table,
    search_paths: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Write a bundle, in the place of one that may be there, and return what `bundle.json` says.

    `input_example` holds a few raw rows, as `Prepared.raw_example` gives them. User code is looked for under
    `search_paths`. Raises UserCodeError for a state that holds anything but tensors, and for user code that is
    no Python.
    """
    weights, tied = _untied(model_state)
    example, example_bytes = _example(input_example, pipeline.raw_schema)
    files = {WEIGHTS: safetensors.torch.save(weights), example: example_bytes}
    named = [model.name.partition(":")[0]] if ":" in model.name else []
    modules = find_modules(named, search_paths)
    for module in modules.values():
        if module.fault:
            raise UserCodeError(module.fault)
        files[f"code/{module.relative}"] = module.content

    manifest = {
        "format": FORMAT,
        "model": model.model_dump(mode="json"),
        "task": task,
        "input_shape": list(pipeline.input_shape),
        "num_outputs": num_outputs,
        "vocab_size": pipeline.vocab_size,
        "pipeline": pipeline.to_dict(),
        "input_example": example,
        "signature": signature(pipeline, task),
        "pip_requirements": pip_requirements(model.name, pipeline),
        "modules": list(modules),
        "tied_weights": tied,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS_OF}},
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    folder.remove_file(MANIFEST)  # and written last: half a bundle is never taken for a whole one
    (folder / "code").remove()
    for name, data in files.items():
        folder.write_bytes(name, data)
    folder.write_json(MANIFEST, manifest)
    return manifest


@dataclass(frozen=True)
class Bundle:
    """A model that takes raw rows. `model` is in eval mode on `device`."""

    model: nn.Module
    pipeline: Pipeline
    task: str
    num_outputs: int
    device: torch.device
    manifest: Mapping[str, Any]

    def predict(self, rows: Any, batch_size: int = 256) -> pd.DataFrame:
        """Predictions for raw rows: an array, a DataFrame, a list of row dicts, of encoded images or of texts.

        Columns: `prediction` and, for classes, `probability_<label>` each. The prediction is the class label;
        the list of labels whose probability is at least 0.5 (multilabel); the number in the target's own unit
        (regression); the text of the likeliest next token (language model). One row per raw row, in order; a
        DataFrame's index is kept. Raises DataError where rows do not fit.
        """
        import pandas as pd

        if isinstance(rows, Mapping):
            rows = pd.DataFrame(rows)
        index = rows.index if isinstance(rows, pd.DataFrame) else pd.RangeIndex(len(rows))
        parts = [self._outputs(_cut(rows, start, batch_size)) for start in range(0, len(rows), batch_size)]
        outputs = torch.cat(parts) if parts else torch.empty((0, self.num_outputs))
        if self.task == "regression":
            values = self.pipeline.inverse_targets(outputs.reshape(len(outputs))).double().numpy()
            return pd.DataFrame({"prediction": values}, index=index)
        if self.task == "language_modeling":
            return pd.DataFrame({"prediction": pd.Series(self._next_tokens(outputs), index, dtype="str")})
        classes = self.pipeline.classes or []
        shares = _probabilities(outputs, self.task).numpy()
        columns = {f"probability_{label}": shares[:, i] for i, label in enumerate(classes)}
        if self.task == "multilabel":
            chosen = [[label for label, on in zip(classes, row, strict=True) if on] for row in shares >= 0.5]
            labels: Any = pd.Series(chosen, index, dtype=object)
        else:
            labels = pd.Series(classes).take(shares.argmax(axis=1)).to_numpy()
        return pd.DataFrame({"prediction": labels, **columns}, index=index)

    def _outputs(self, rows: Any) -> Tensor:
        """The model's outputs for one batch of raw rows, shape (rows, num_outputs), float32 on the CPU; of a
        language model, those at each row's last token."""
        encoded = torch.from_numpy(self.pipeline.encode(rows)).to(self.device)
        with torch.inference_mode():
            inputs = self.pipeline.transform(encoded)
            outputs: Tensor = self.model(inputs)
        if self.task == "language_modeling":
            lengths = (inputs != PADDING).sum(dim=1)
            if not bool(lengths.all()):
                raise DataError("a text is empty", "give a language model at least one token to go on from")
            outputs = outputs[torch.arange(len(inputs), device=self.device), lengths - 1]
        return outputs.float().cpu().reshape(len(encoded), self.num_outputs)

    def _next_tokens(self, outputs: Tensor) -> list[str]:
        """The texts of the likeliest tokens; padding and unknown have none, and are no candidates."""
        tokenizer = self.pipeline.tokenizer
        assert tokenizer is not None
        best = outputs[:, FIRST_TOKEN:].argmax(dim=1) + FIRST_TOKEN
        return [tokenizer.token(index) for index in best.tolist()]


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Read a bundle from a local folder, after checking the hash of every file, and build its model.

    Raises UsageError where there is no bundle, or one of a later format; CheckpointError where files are
    missing, damaged or do not fit the model. Leaves torch's random state as it was.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, digest in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"the model bundle {folder} lacks {name}", "export it again")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise CheckpointError(
                f"{file} is damaged: its sha256 is not the one in {MANIFEST}", "export it again"
            )
    section = ModelSection.model_validate(manifest["model"])
    num_outputs = int(manifest["num_outputs"])
    with torch.random.fork_rng(devices=[]), imported_from(folder / "code", manifest["modules"]):
        model = build_model(
            section,
            tuple(manifest["input_shape"]),
            num_outputs,
            manifest.get("vocab_size"),
            manifest["task"] == "language_modeling",
            download=False,
        )
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    weights |= {name: weights[same] for name, same in manifest["tied_weights"].items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {folder} do not fit model '{section.name}': {error}",
            "install the versions that bundle.json names, or export it again",
        ) from error
    where = torch.device(device)
    pipeline = Pipeline.from_dict(manifest["pipeline"])
    return Bundle(model.to(where).eval(), pipeline, manifest["task"], num_outputs, where, manifest)


def _untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, as safetensors wants, and which of them each tied weight equals."""
    weights: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UserCodeError(
                f"the model's state '{name}' is a {type(tensor).__name__}, and a bundle holds only tensors",
                "keep it in a buffer, or in model.args",
            )
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in seen:
            tied[name] = seen[memory]
            continue
        seen[memory] = name
        weights[name] = tensor.detach().cpu().contiguous().clone()
    return weights, tied


def _example(rows: pa.Table, schema: RawSchema) -> tuple[str, bytes]:
    """Name and content of the file of example rows: an array, or row objects with bytes as base64 text."""
    if schema.kind == "array":
        buffer = io.BytesIO()
        np.save(buffer, array_values(rows[schema.columns[0]]), allow_pickle=False)
        return "input_example.npy", buffer.getvalue()
    if schema.kind == "encoded_image":
        name = schema.columns[0]
        items = image_bytes(rows[name]).to_pylist()
        plain = [{name: base64.b64encode(item).decode()} for item in items if item]
    else:
        plain = [{name: _json_value(row[name]) for name in schema.columns} for row in rows.to_pylist()]
    return "input_example.json", (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()


def _json_value(value: Any) -> Any:
    """JSON knows neither decimals nor NaN."""
    if isinstance(value, bool | int | str | None):
        return value
    return float(value) if math.isfinite(value) else None


def _cut(rows: Any, start: int, count: int) -> Any:
    """Some rows of a DataFrame, an array or a list."""
    return (rows.iloc if hasattr(rows, "iloc") else rows)[start : start + count]


def _probabilities(outputs: Tensor, task: str) -> Tensor:
    """Probabilities of the classes, shape (n, classes), float64; of labels each by itself. One output is the
    logit of the second class."""
    if task == "multilabel":
        return outputs.double().sigmoid()
    if outputs.shape[1] == 1:
        second = outputs.double().sigmoid()
        return torch.cat([1 - second, second], dim=1)
    return outputs.double().softmax(dim=1)
