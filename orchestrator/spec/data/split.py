"""How rows are parted into train, val and test."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from orchestrator.spec.base import Section

SplitKind = Literal["random", "stratified", "grouped", "time", "hash", "given"]
Value = str | int | float | bool
Column = Annotated[str, Field(min_length=1)]

PATH_COLUMN = "__path__"
"""Reserved: the source's name for the file that a row comes from, as `train/cats/1.png`."""

_FOLDED = ("random", "stratified", "grouped")


class GivenValues(Section):
    """Which values of the column `by` mean which part."""

    train: list[Value] = Field(min_length=1)
    val: list[Value] = Field(default_factory=list)
    test: list[Value] = Field(default_factory=list)


class GivenFiles(Section):
    """Which files make up which part: patterns on the paths below the source's folder, as in `train/**`. A folder's
    name means all that lies in it; `*` stays within a folder, `**` goes through them."""

    train: list[str] = Field(min_length=1)
    val: list[str] = Field(default_factory=list)
    test: list[str] = Field(default_factory=list)


class Split(Section):
    """How rows are parted. Ratios must sum to 1.

    `random`; `stratified` keeps class shares (classification only); `grouped` never parts the rows of one group;
    `time` trains on the oldest rows and tests on the newest; `hash` decides each row by its key and the seed alone,
    so that rows appended later move no other; `given` reads the part from a column or from the files' names.
    """

    kind: SplitKind = "random"
    train: float = Field(default=0.7, gt=0, lt=1)
    val: float = Field(default=0.15, ge=0, lt=1)
    test: float = Field(default=0.15, ge=0, lt=1)
    by: Column | Annotated[list[Column], Field(min_length=1)] | None = None
    """The column that names the group (grouped), tells the time (time), names the part (given), or is the key
    (hash: one column or several; by default the whole row). It need not be a feature."""
    values: GivenValues | None = None
    """given: which values of `by` mean which part; by default the column holds train, val and test."""
    files: GivenFiles | None = None
    """given: patterns of source files per part, instead of `by`."""
    folds: int | None = Field(default=None, ge=2)
    """Cross-validation (random, stratified, grouped): so many parts of equal size, of which `fold` is validated on
    and the others train; all but the rows of `test`, which is 0 unless it is set."""
    fold: int | None = Field(default=None, ge=0)
    """Which of the folds is the val part, from 0. Runs with the folds 0 to folds - 1 validate every row once."""

    @model_validator(mode="before")
    @classmethod
    def _folds_decide_shares(cls, value: Any) -> Any:
        """With folds, the shares of train and val follow."""
        if not isinstance(value, dict) or not isinstance(value.get("folds"), int) or value["folds"] < 2:
            return value
        test = value.get("test", 0.0)
        if isinstance(test, bool) or not isinstance(test, int | float) or not 0 <= test < 1:
            return value
        val = (1 - test) / value["folds"]
        for name, share in (("val", val), ("train", 1 - test - val)):
            given = value.get(name, share)
            if isinstance(given, int | float) and abs(given - share) > 1e-6:
                raise ValueError(
                    f"with folds: {value['folds']} and test: {test:g}, {name} is {share:g}; leave it out"
                )
        return {**value, "test": test, "val": val, "train": 1 - test - val}

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, not {total:g}")
        return self

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        if self.kind in ("grouped", "time") and not isinstance(self.by, str):
            example = "patient" if self.kind == "grouped" else "date"
            raise ValueError(f"kind: {self.kind} needs one column, as in by: {example}")
        if self.kind in ("random", "stratified") and self.by is not None:
            raise ValueError(f"kind: {self.kind} takes no 'by'; write kind: grouped, time, hash or given")
        if self.kind == "given":
            self._given()
        elif self.values is not None or self.files is not None:
            raise ValueError("'values' and 'files' need kind: given")
        return self

    @model_validator(mode="after")
    def _fold_is_one_of_the_folds(self) -> Self:
        if (self.folds is None) != (self.fold is None):
            raise ValueError("cross-validation needs both, as in folds: 5 and fold: 0")
        if self.folds is not None and self.kind not in _FOLDED:
            raise ValueError(
                f"kind: {self.kind} has no folds; write kind: {', '.join(_FOLDED[:2])} or grouped"
            )
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold must be 0 to {self.folds - 1}, not {self.fold}")
        return self

    def _given(self) -> None:
        if (self.by is None) == (self.files is None):
            raise ValueError("kind: given needs either a column, as in by: part, or files")
        if isinstance(self.by, list):
            raise ValueError("kind: given needs one column, as in by: part")
        if self.values is not None and self.by is None:
            raise ValueError("'values' are those of a column: name it with 'by'")
        defaults = {name: type(self).model_fields[name].default for name in ("train", "val", "test")}
        if any(getattr(self, name) != default for name, default in defaults.items()):
            raise ValueError("the parts are given: leave the ratios train, val and test out")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the split reads, whether or not a model learns from them; for `hash` without `by` all
        there are, which stands as ()."""
        if self.files is not None:
            return (PATH_COLUMN,)
        return (self.by,) if isinstance(self.by, str) else tuple(self.by or ())
