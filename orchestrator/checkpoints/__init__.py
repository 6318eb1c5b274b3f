"""Checkpoints: the one owner of a run's saved state, from the snapshot to the file and back.

    checkpoints/attempt.json           the newest attempt, which fences older ones
    checkpoints/step-000000123/        one checkpoint
        state.pt                       what all ranks share, written by rank 0
        rank-00002.pt|.safetensors     what one rank alone has; absent where there is nothing
        manifest.json                  written last: without it the checkpoint does not exist

Imports: storage, spec; torch in `tensors.py` alone.
"""
