"""The driver's part of `init_from`: find the weights, hash them, and put them where every worker finds them.

Fetching comes before the run is chosen, since what the weights hold is part of a run's identity; placing comes
after. Imports: runs, export, tracking, the standard library.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import CheckpointError, UsageError
from orchestrator.export.manifest import MANIFEST, WEIGHTS, read_manifest
from orchestrator.runs.folder import RunFolder, list_runs
from orchestrator.spec.model import InitFromSection
from orchestrator.storage import Folder
from orchestrator.tracking.registry import download_model, is_model_uri

SUFFIXES = (".safetensors", ".pt", ".pth")
"""Of files that weights are read from."""


@dataclass(frozen=True)
class InitialWeights:
    """A file of weights on this machine. `sha256` (hex) is that of its content; `source` is what was asked for."""

    file: Path
    sha256: str
    source: str


def fetch_initial(
    section: InitFromSection, storage: Folder, tracking_uri: str, temporary: Path
) -> InitialWeights:
    """Find the weights that `init_from.uri` names; what is not on this machine is downloaded into `temporary`.

    Raises UsageError where there are none, CheckpointError where they are damaged, TrackingError where MLflow
    cannot be reached.
    """
    uri = section.uri
    try:
        file = _find(uri, storage, tracking_uri, temporary)
    except UsageError as error:
        raise UsageError(f"init_from.uri: {error.reason}", error.mend) from error
    return InitialWeights(file, _checked_hash(file), uri)


def place_initial(initial: InitialWeights, run: RunFolder) -> None:
    """Copy the weights into the run's folder, where `placed_weights` finds them; a resumed run has them already."""
    name = f"weights-{initial.sha256[:16]}{initial.file.suffix}"
    if not run.init.exists(name):
        run.init.write_bytes(name, initial.file.read_bytes())


def _find(uri: str, storage: Folder, tracking_uri: str, temporary: Path) -> Path:
    if is_model_uri(uri):
        return _weights_in(download_model(tracking_uri, uri, temporary), uri)
    runs = list_runs(storage)
    for run in runs:
        if run.label == uri:
            return _weights_of_run(run, temporary)
    if "://" in uri:
        folder, _, name = uri.rpartition("/")
        place = Folder.at(folder)
        if not place.exists(name):
            raise UsageError(f"there is no {uri}")
        (temporary / name).write_bytes(place.read_bytes(name))
        return _weights_in(temporary / name, uri)
    path = Path(uri).expanduser().absolute()
    if not path.exists():
        known = ", ".join(run.label for run in runs[-20:])
        raise UsageError(
            f"'{uri}' is neither a run in {storage.uri} nor a file or folder ({path})",
            f"known runs: {known}" if known else "there are no runs yet; name a file, or a model (models:/…)",
        )
    return _weights_in(path, uri)


def _weights_of_run(run: RunFolder, temporary: Path) -> Path:
    if not run.model.exists(MANIFEST):
        raise UsageError(
            f"{run.label} has no model: it has not ended well, or not yet",
            f"wait for it, or name the state.pt of one of its checkpoints ({run.checkpoints.uri})",
        )
    if run.model.is_local:
        return run.model.local_path() / WEIGHTS
    run.model.download(temporary)
    return temporary / WEIGHTS


def _weights_in(place: Path, uri: str) -> Path:
    """The file of weights that a path is, or that lies in a folder: a bundle's, or the only one that there is."""
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise UsageError(f"{place} is no file of weights", f"name one that ends in {', '.join(SUFFIXES)}")
        return place
    files = sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES)
    bundles = [file for file in files if file.name == WEIGHTS and (file.parent / MANIFEST).is_file()]
    found = bundles or files
    if len(found) != 1:
        held = "no weights" if not found else f"several: {', '.join(file.name for file in found[:6])}"
        raise UsageError(
            f"'{uri}' ({place}) holds {held}", f"name one file that ends in {', '.join(SUFFIXES)}"
        )
    return found[0]


def _checked_hash(file: Path) -> str:
    """SHA-256 (hex) of the file; raises CheckpointError where a bundle says that it should be another one."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    in_bundle = file.name == WEIGHTS and (file.parent / MANIFEST).is_file()
    if in_bundle and read_manifest(file.parent)["files"].get(file.name) != digest:
        raise CheckpointError(
            f"init_from: {file} is damaged: its sha256 is not the one in {MANIFEST}", "export it again"
        )
    return digest
