from __future__ import annotations

import pickle

import pytest

from orchestrator import errors
from orchestrator.errors import Fault, OrchestratorError, SourceError, SpecError, UsageError

ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, OrchestratorError) and kind is not SpecError
]
FAULTS = (
    Fault("train.lr", "is wrong", "Write 1", "job.yaml", 3),
    Fault("seed", "is missing", file="job.yaml"),
    Fault("", "is empty"),
)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_pickling(kind: type[OrchestratorError]) -> None:
    for error in (kind("the reason", "the mend"), kind("only a reason")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert (again.reason, again.mend, str(again)) == (error.reason, error.mend, str(error))
        assert (again.exit_code, again.cause) == (kind.exit_code, kind.cause)


def test_a_spec_error_survives_pickling_with_its_faults() -> None:
    again = pickle.loads(pickle.dumps(SpecError(FAULTS)))
    assert type(again) is SpecError
    assert again.faults == FAULTS
    assert str(again) == str(SpecError(FAULTS))


def test_what_bad_input_raises_exits_with_2_what_may_succeed_later_with_75_and_the_rest_with_1() -> None:
    assert {kind.__name__ for kind in ALL if kind.exit_code == 2} == {
        "UsageError",
        "SourceError",
        "MissingPackage",
        "Infeasible",
    }
    assert SpecError.exit_code == 2
    assert {kind.__name__ for kind in ALL if kind.exit_code == 75} == {"PlacementError"}
    assert all(kind.exit_code in (1, 75) for kind in ALL if not issubclass(kind, UsageError))
    assert (UsageError.cause, SpecError.cause, SourceError.cause) == ("user error", "user error", "data")


def test_the_message_ends_in_the_mend() -> None:
    assert str(UsageError("no such file", "write another")) == "no such file. write another"
    assert str(UsageError("no such file.", "write another")) == "no such file. write another"
    assert str(UsageError("no such file")) == "no such file"


def test_faults_are_one_line_each() -> None:
    assert str(SpecError(FAULTS)).splitlines() == [
        "job.yaml:3: train.lr: is wrong. Write 1",
        "job.yaml: seed: is missing",
        "is empty",
    ]
