"""What attempts that ran out of memory leave for the next one."""

from __future__ import annotations

from pathlib import Path

import ray

from orchestrator.engine.microbatch import halve_microbatch, microbatch_limit, note_microbatch
from orchestrator.runners.ray_workers.causes import killed_for_memory
from orchestrator.storage import Folder


def test_each_attempt_that_ran_out_of_memory_halves_what_it_used(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    assert microbatch_limit(folder) is None
    assert not halve_microbatch(folder), "no attempt has begun"
    note_microbatch(folder, 12)
    assert microbatch_limit(folder) is None
    assert halve_microbatch(folder)
    assert halve_microbatch(folder), "another rank of the same attempt says the same"
    assert microbatch_limit(folder) == 6
    for used, limit in ((6, 3), (3, 1)):
        note_microbatch(folder, used)
        assert halve_microbatch(folder)
        assert microbatch_limit(folder) == limit
    note_microbatch(folder, 1)
    assert not halve_microbatch(folder), "one sample at once was too much"


def test_a_worker_that_was_killed_for_memory_is_told_from_one_that_died() -> None:
    assert killed_for_memory(ray.exceptions.OutOfMemoryError("Task was killed due to the node running low"))
    assert killed_for_memory(ray.exceptions.RayError("Worker exit type: NODE_OUT_OF_MEMORY"))
    assert not killed_for_memory(ray.exceptions.WorkerCrashedError())
