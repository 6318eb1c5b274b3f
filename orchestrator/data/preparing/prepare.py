"""Prepared data by content key: find it, or build it once under a lock. What is found costs no heavy import.

Imports: the standard library, `storage`, `data.prepared`; the build where something has to be built.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.data.prepared.cache import node_lock, node_path
from orchestrator.data.prepared.manifest import FORMAT_VERSION, MANIFEST
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.earlier import find_earlier
from orchestrator.data.preparing.mapper import in_process
from orchestrator.data.preparing.room import writing_to
from orchestrator.data.sources.fingerprint import fingerprint as data_fingerprint
from orchestrator.data.sources.fingerprint import memo_file
from orchestrator.errors import DataError
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder

if TYPE_CHECKING:
    from orchestrator.data.preparing.earlier import find_earlier
from orchestrator.data.preparing.mapper import Mapper


def _here(num_chunks: int) -> Mapper:  # noqa: ARG001
    return in_process


def prepare(
    section: DataSection,
    *,
    task: str,
    seed: int,
    storage: Folder,
    fingerprint: str | None = None,
    mapper: Callable[[int], Mapper] = _here,
    stop: threading.Event | None = None,
) -> Prepared:
    """The section's data, ready to train on, under `<storage>/prepared/<key>`.

    Found there if it was prepared before (damaged folders are built anew), else built; of several processes
    one builds and the others wait. `task` is the spec's `train.task`, `seed` decides the split, `mapper` (by the
    number of chunks) where the work is done: here, by default. With `cache: false` it is always built, into a
    folder of its own that `discard` removes.

    Raises SourceError and DataError as `build` does; KeyboardInterrupt when `stop` is set, within the time of a
    chunk, and nothing of the build is left; UsageError where the storage may not be written to.
    """
    if fingerprint is None:
        fingerprint = data_fingerprint(section, sys.path, memo_file(storage))
    named = names_of(section, task=task, seed=seed, fingerprint=fingerprint)
    if not section.cache:
        named["key"] += f"-{secrets.token_hex(4)}"
    place = prepared_folder(storage, named["key"])
    found = _find(place, section)
    if found is not None:
        return found
    # On remote storage two nodes may both build, and upload the same content.
    with writing_to(storage), node_lock(place):
        return _find(place, section) or _build(
            section,
            place,
            task=task,
            seed=seed,
            named=named,
            mapper=mapper,
            memo=memo_file(storage),
            earlier=find_earlier(storage / "prepared", named["lineage"]) if section.cache else None,
            stop=stop,
        )


_NOT_IN_THE_DATA: Any = {
    "cache": True,
    "augment": True,
    "iterate": True,
    "quality": True,
    "preparation": {"by"},
    "source": {"path", "url", "password_env"},
}


def names_of(section: DataSection, *, task: str, seed: int, fingerprint: str) -> dict[str, str]:
    """What prepared data goes by. `key` names it by all that decides its content: the source's path does not (its
    content, the `fingerprint`, does), nor where it is prepared, nor what comes later, as augmentation. `lineage` is
    the same for whatever the same settings prepare of the same place."""
    settings = section.model_dump(mode="json", exclude=_NOT_IN_THE_DATA)
    place = section.source.model_dump(mode="json", include={"path", "url"})
    return {
        "key": _digest([FORMAT_VERSION, fingerprint, settings, task, seed]),
        "fingerprint": fingerprint,
        "lineage": _digest([FORMAT_VERSION, settings, task, seed, place]),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def prepared_folder(storage: Folder, key: str) -> Folder:
    """Where prepared data of a key lies."""
    return storage / "prepared" / key


def discard(section: DataSection, storage: Folder, prepared: Prepared) -> None:
    """Remove what `cache: false` built; cached data stays."""
    if not section.cache:
        prepared_folder(storage, prepared.manifest.key).remove()
        shutil.rmtree(prepared.folder, ignore_errors=True)


def _find(place: Folder, section: DataSection) -> Prepared | None:
    if not place.is_local and place.exists(MANIFEST):
        with contextlib.suppress(DataError):  # another node may be uploading it this moment
            return Prepared.load(place, section.iterate)
    return Prepared.find(place.local_path(), section.iterate) if place.is_local else None


def _build(section: DataSection, place: Folder, *, named: dict[str, str], **settings: Any) -> Prepared:
    """Build beside the final path, then rename: a local folder under its key is always complete. On remote storage
    the manifest, written last, says so."""
    from orchestrator.data.preparing.build import build

    key = named["key"]
    if not place.is_local:
        build(section, folder=place, named=named, **settings)
        return Prepared.load(place, section.iterate)
    final = node_path(place)
    for leftover in final.parent.glob(
        f"{key}.tmp-*"
    ):  # of a build that was killed: this process holds the lock
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = final.with_name(f"{key}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        manifest = build(section, folder=Folder.at(temporary), named=named, **settings)
        if final.exists():  # damaged; processes that have it mapped keep their pages
            shutil.rmtree(final)
        temporary.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Prepared(final, manifest, section.iterate)
