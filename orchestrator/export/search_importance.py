"""How much each parameter of a search matters: permutation importance of a random forest.

Imports: numpy; scikit-learn inside functions; the table of the search.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.export.search_table import Summary, paths, scored, varying

FEWEST_TRIALS = 8
"""Below this a forest learns nothing that would deserve a picture."""
_MOST_TRIALS = 1000
_FOLDS, _TREES, _REPEATS = 5, 60, 8
_SEED = 0


@dataclass(frozen=True)
class Importance:
    """Of each parameter that varied, the most important first: by how much the forest's R² on trials that it has not
    seen falls when that parameter's values are shuffled among them, and the standard deviation of that.

    `r2` is that of the forest itself: at 0 or below it predicts nothing, and the figures mean nothing.
    """

    names: list[str]
    means: list[float]
    deviations: list[float]
    r2: float
    num_trials: int

    @property
    def method(self) -> str:
        return (
            f"Fall in R² when a parameter is shuffled: random forests of {_TREES} trees, {_FOLDS}-fold "
            f"cross-validated, predict the rank of {self.num_trials} trials with R² = {self.r2:.2f}. Whiskers: "
            "standard deviation over the folds."
        )


def importance(summary: Summary, log_scale: Collection[str] = ()) -> Importance | None:
    """The importance of the parameters for the first metric; None for fewer than `FEWEST_TRIALS` trials with a score,
    and where none of their parameters varies.

    Pruned trials count by the best that they reached. The forest predicts the rank of a trial, not its score, so that
    a few that diverged do not outweigh all others. Parameters of `log_scale` enter as logarithms; one that a trial
    lacks as a value below all others. The same trials always give the same figures.
    """
    pairs = scored(summary)[-_MOST_TRIALS:]
    trials = [trial for trial, _ in pairs]
    names = [path for path in paths(summary) if varying(trials, path)]
    if len(pairs) < FEWEST_TRIALS or not names:
        return None
    features = np.column_stack(
        [_column([trial["params"].get(name) for trial in trials], log=name in log_scale) for name in names]
    )
    falls, r2 = _falls(features, _ranks(np.array([score for _, score in pairs])))
    order = np.argsort(-falls.mean(axis=0), kind="stable")
    return Importance(
        names=[names[index] for index in order],
        means=[float(falls[:, index].mean()) for index in order],
        deviations=[float(falls[:, index].std()) for index in order],
        r2=r2,
        num_trials=len(pairs),
    )


def _falls(
    features: np.ndarray[Any, Any], target: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], float]:
    """By how much R² fell in each fold, shape (folds, features), and R² over all folds."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    chance = np.random.default_rng(_SEED)
    predicted = np.empty(len(target))
    errors = np.empty((_FOLDS, features.shape[1]))
    spread = float(((target - target.mean()) ** 2).mean()) or 1.0
    for fold, (train, held) in enumerate(KFold(_FOLDS, shuffle=True, random_state=_SEED).split(features)):
        forest = RandomForestRegressor(
            _TREES, random_state=_SEED, min_samples_leaf=2, max_features=0.7, n_jobs=1
        )
        forest.fit(features[train], target[train])
        predicted[held] = forest.predict(features[held])
        usual = ((predicted[held] - target[held]) ** 2).mean()
        for column in range(features.shape[1]):
            shuffled = np.tile(features[held], (_REPEATS, 1))
            shuffled[:, column] = np.concatenate(
                [chance.permutation(features[held, column]) for _ in range(_REPEATS)]
            )
            wrong = forest.predict(shuffled) - np.tile(target[held], _REPEATS)
            errors[fold, column] = ((wrong**2).mean() - usual) / spread
    return errors, 1 - float(((predicted - target) ** 2).mean()) / spread


def _ranks(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ranks between 0 and 1; equal scores share theirs."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2
    ranks: np.ndarray[Any, Any] = middle[place] / max(1, len(scores) - 1)
    return ranks


def _column(values: list[Any], *, log: bool) -> np.ndarray[Any, Any]:
    """One parameter as numbers: what is none is numbered in a fixed order."""
    if all(value is None or _is_number(value) for value in values):
        column = np.array([np.nan if value is None else float(value) for value in values])
        if log:
            column = np.log(np.where(column > 0, column, np.nan))
    else:
        texts = [None if value is None else json.dumps(value, default=str) for value in values]
        known = sorted({text for text in texts if text is not None})
        column = np.array([np.nan if text is None else float(known.index(text)) for text in texts])
    there = column[np.isfinite(column)]
    below = there.min() - max(1.0, np.ptp(there)) if len(there) else 0.0
    return np.where(np.isfinite(column), column, below)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
