"""The input example of a model, as MLflow stores it. Imports: numpy, pandas (inside functions), ops."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from orchestrator.tracking.ops import LogModel


def input_example(op: LogModel) -> Any:
    """The example as an array or a table; binary columns (by the signature) are decoded from base64."""
    if op.input_example is None:
        return None
    path = Path(op.model_dir) / op.input_example
    if path.suffix == ".npy":
        import numpy as np

        return np.load(path, allow_pickle=False)
    import pandas as pd

    table = pd.DataFrame(json.loads(path.read_text()))
    columns = json.loads((op.signature or {}).get("inputs") or "[]")
    for column in columns:
        if column.get("type") == "binary" and column.get("name") in table:
            table[column["name"]] = [base64.b64decode(text) for text in table[column["name"]]]
    return table
