"""What makes two runs the same work: data, model, train, seed, what a search searches, the user's code, and the
content of the data and of the weights to begin with.

Imports: user_code, spec, yaml, the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from orchestrator.spec.job import JobSpec
from orchestrator.user_code import hash_modules

_OBJECT_PATH = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*")
_FREE_TRAIN_KEYS = {"max_epochs", "max_steps"}
_FREE_DATA_KEYS = {"quality"}
_FREE_TUNE_KEYS = {
    *("effort", "num_samples", "max_concurrent_trials", "time_budget"),
    *("max_equal_failures", "recycle_worker_at", "then"),
}
_COUNTED_SAMPLES = ("pbt", "pb2", "hyperband")
"""Schedulers for which the number of trials changes what becomes of each."""
_WORDS = {
    "code": "the user's code",
    "data_fingerprint": "the content of the data",
    "init_from": "the weights of init_from",
}


@dataclass(frozen=True)
class Identity:
    """`sections` has a short hash each of data, model, train, seed, code, data_fingerprint and, where the spec
    has them, init_from and tune."""

    hash: str
    sections: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Identity:
        return cls(str(facts.get("hash", "")), dict(facts.get("sections", {})))


def identify(
    spec: JobSpec, data_fingerprint: str, search_paths: Sequence[str], init_hash: str = ""
) -> Identity:
    """The identity of the run that a spec describes. User code is found in `search_paths`, first wins.

    `init_hash` is that of the weights which `init_from` names: what they hold counts, not where they lie.
    """
    parts = _identified(spec.model_dump(mode="json"))
    if "init_from" in parts:
        parts["init_from"] = {**parts["init_from"], "content": init_hash}
    parts |= {"code": code_hash(spec, search_paths), "data_fingerprint": data_fingerprint}
    digests = {name: _digest(json.dumps(part, sort_keys=True)) for name, part in parts.items()}
    whole = _digest(json.dumps(digests, sort_keys=True))
    return Identity(whole[:16], {name: digest[:8] for name, digest in digests.items()})


def code_hash(spec: JobSpec, search_paths: Sequence[str]) -> str:
    """Hash of every module that the spec names as `module:object`, and of the user's modules they import."""
    return hash_modules(_named_modules(spec), search_paths)


def differences(
    old: Identity, new: Identity, old_spec_yaml: str | None = None, new_spec: JobSpec | None = None
) -> list[str]:
    """What changed from one identity to another, in words; changed keys where the specs are given."""
    told = []
    before = _flat(_identified(_parsed(old_spec_yaml)))
    after = _flat(_identified(new_spec.model_dump(mode="json"))) if new_spec else {}
    for section in sorted(old.sections.keys() | new.sections.keys()):
        if old.sections.get(section) == new.sections.get(section):
            continue
        keys = [
            f"{key}: {_shown(before.get(key))} → {_shown(after.get(key))}"
            for key in sorted(before.keys() | after.keys())
            if before and after and key.partition(".")[0] == section and before.get(key) != after.get(key)
        ]
        told += keys or [f"{_WORDS.get(section, section)} changed"]
    return told


def _identified(spec: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: spec[name] for name in ("data", "model", "train", "seed") if name in spec}
    if isinstance(parts.get("train"), dict):
        parts["train"] = {key: value for key, value in parts["train"].items() if key not in _FREE_TRAIN_KEYS}
    if isinstance(parts.get("data"), dict):
        parts["data"] = {key: value for key, value in parts["data"].items() if key not in _FREE_DATA_KEYS}
        if isinstance(parts["data"].get("preparation"), dict):
            parts["data"]["preparation"] = {**parts["data"]["preparation"], "by": "auto"}
    if isinstance(spec.get("tune"), Mapping):
        parts["tune"] = _identified_search(spec["tune"])
        parts["train"] = spec.get(
            "train"
        )  # a search gives its trials so many epochs each, and judges them by that
    if isinstance(spec.get("init_from"), Mapping):
        parts["init_from"] = {key: value for key, value in spec["init_from"].items() if key != "uri"}
    return parts


def _identified_search(tune: Mapping[str, Any]) -> dict[str, Any]:
    scheduler = tune.get("scheduler")
    counts = isinstance(scheduler, Mapping) and scheduler.get("kind") in _COUNTED_SAMPLES
    free = _FREE_TUNE_KEYS - ({"num_samples"} if counts else set())
    return {key: value for key, value in tune.items() if key not in free}


def _named_modules(spec: JobSpec) -> Iterator[str]:
    for value in _flat(_identified(spec.model_dump(mode="json"))).values():
        if isinstance(value, str) and (match := _OBJECT_PATH.fullmatch(value)):
            yield match[1]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted keys; empty ones and nulls are left out."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {} if value is None else {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat


def _parsed(spec_yaml: str | None) -> Mapping[str, Any]:
    if not spec_yaml:
        return {}
    try:
        value = yaml.safe_load(spec_yaml)
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()
