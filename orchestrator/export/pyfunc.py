"""The loader module of a logged model: MLflow calls `_load_pyfunc` with the path of the bundle inside it.

MLflow itself is not imported. Imports: `export.bundle`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.export.bundle import Bundle, load_bundle

if TYPE_CHECKING:
    import pandas as pd


class PyfuncModel:
    """What MLflow's `load_model` wraps: raw rows in, a DataFrame of predictions out."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """Predictions as `Bundle.predict` gives them. MLflow passes `params`; there are none."""
        return self.bundle.predict(model_input)


def _load_pyfunc(path: str) -> PyfuncModel:
    return PyfuncModel(load_bundle(path))
