"""The sections `model` and `init_from`: the network, and the weights it begins with."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from orchestrator.spec.base import OBJECT_PATH, Section

BUILT_IN_MODELS = ("linear", "mlp", "cnn", "lstm", "gru", "transformer", "gpt")
_TORCHVISION = re.compile(r"torchvision/[a-z0-9_]+")


class ModelSection(Section):
    """The network: a name of ours, `torchvision/<name>`, or the user's own `module:object`."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the builder, such as `hidden: [64, 64]` for `mlp`. User code gets `input_shape`,
    `num_outputs` and, for token sequences, `vocab_size` too where its signature asks for them."""
    pretrained: bool = False
    """torchvision only: begin with its newest published weights, which are downloaded once per node."""
    freeze: list[str] = Field(default_factory=list)
    """Parameters that are not trained, by patterns of their names (`features.*`); `*` matches anything."""

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BUILT_IN_MODELS and not (
            _TORCHVISION.fullmatch(value) or OBJECT_PATH.fullmatch(value)
        ):
            raise ValueError(
                f"no model is named '{value}'; write {', '.join(BUILT_IN_MODELS)}, 'torchvision/resnet18' "
                "(any torchvision classification model), or your own code as 'module:object'"
            )
        return value


class InitFromSection(Section):
    """Weights to begin with: of an earlier run, of a registered model, or from a file (transfer learning)."""

    uri: str = Field(min_length=1)
    """A run of this storage (`digits-3`), a registered model (`models:/digits@champion`, `models:/digits/2`),
    an MLflow run (`runs:/<id>`), or a file or folder with `.safetensors` or `.pt` weights."""
    head: Literal["auto", "keep", "replace"] = "auto"
    """The last layer: `auto` replaces it (freshly initialised) where its shape differs from the weights'."""
    strict: bool = True
    """Fail where other weights are missing, left over, or of another shape; false takes what fits."""
