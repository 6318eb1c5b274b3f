"""Sources that are no files: scikit-learn's data sets, generated rows and the user's own reader.

Imports: numpy, pyarrow; scikit-learn where it is needed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from orchestrator.data.sources.chunks import WholePlan, digest_lines
from orchestrator.data.sources.rows import to_table
from orchestrator.errors import SourceError, UserCodeError
from orchestrator.imports import load_object
from orchestrator.spec.data import LinearSource, PythonSource, SklearnSource
from orchestrator.user_code import hash_modules


def plan_sklearn(source: SklearnSource) -> WholePlan:
    """Fingerprint: the name, and the version of the library that ships the data."""
    lines = [source.name, importlib.metadata.version("scikit-learn")]
    return WholePlan(f"scikit-learn's {source.name}", digest_lines(lines), partial(_read_sklearn, source))


def plan_linear(source: LinearSource) -> WholePlan:
    return WholePlan(
        "generated rows", digest_lines([source.model_dump_json()]), partial(_read_linear, source)
    )


def plan_python(source: PythonSource, search_paths: Sequence[str]) -> WholePlan:
    """Fingerprint: the module of the function with the user's modules that it imports, and its arguments. What the
    function reads is not seen."""
    lines = [source.model_dump_json(), hash_modules([source.function.partition(":")[0]], search_paths)]
    return WholePlan(source.function, digest_lines(lines), partial(_read_python, source))


def _read_sklearn(source: SklearnSource) -> pa.Table:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{source.name}")()
    if source.name == "digits":
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(bunch.images))
        return pa.table({"image": images, "label": pa.array(bunch.target.astype(np.int64))})
    columns = {str(name): pa.array(bunch.data[:, i]) for i, name in enumerate(bunch.feature_names)}
    if "target_names" in bunch:
        columns["target"] = pa.array([str(name) for name in bunch.target_names]).take(pa.array(bunch.target))
    else:
        columns["target"] = pa.array(bunch.target)
    return pa.table(columns)


def _read_linear(source: LinearSource) -> pa.Table:
    generator = np.random.default_rng(source.seed)
    x = generator.standard_normal((source.rows, len(source.coefficients)))
    y = x @ np.array(source.coefficients) + generator.normal(0.0, source.noise, source.rows)
    return pa.table({**{f"x{i + 1}": x[:, i] for i in range(x.shape[1])}, "y": y})


def _read_python(source: PythonSource) -> pa.Table:
    function = load_object(source.function)
    try:
        result = function(**source.args)
    except Exception as error:
        raise UserCodeError(
            f"data.source.function: {source.function} raised {type(error).__name__}: {error}",
            "mend the function, or its data.source.args",
        ) from error
    try:
        return to_table(result)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SourceError(
            f"data.source.function: what {source.function} returned is no table: {error}",
            "return a pyarrow Table, a pandas DataFrame, or a dict of arrays of equal length",
        ) from error
