"""A trace of some steps by torch.profiler, for chrome://tracing or Perfetto. Imports: torch."""

from __future__ import annotations

import gzip
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from orchestrator.spec.train import Profile
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)


class StepProfiler:
    """Records the steps that the section names into `<name>.json.gz` of a folder; call `step` after each
    optimizer step."""

    def __init__(self, section: Profile, folder: Folder, name: str) -> None:
        self._first = section.start_step
        self._last = section.start_step + section.steps - 1
        self._folder = folder
        self._name = name
        self._profiler: Any = None

    def step(self, step: int) -> None:
        """`step` steps are done."""
        if self._profiler is None and step >= self._first - 1 and step < self._last:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profiler.start()
        elif self._profiler is not None and step == self._last:
            self.close()

    def close(self) -> None:
        """Write what was recorded, also where the training ended before the last step to record."""
        if self._profiler is None:
            return
        profiler, self._profiler, self._first = self._profiler, None, 1 << 62
        profiler.stop()
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "trace.json"
            profiler.export_chrome_trace(str(file))
            name = f"{self._name}.json.gz"
            self._folder.write_bytes(name, gzip.compress(file.read_bytes()))
        _log.info("profile written to %s", (self._folder / name).uri)
