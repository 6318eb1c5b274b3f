"""The one place where the parts are put together, the same for every runner: `train_worker`.

Imports: everything above it in the layer table; no ray, no mlflow.
"""

from orchestrator.worker.run import train_worker
from orchestrator.worker.task import WorkerTask, build_recipe, checkpoint_store

__all__ = ["WorkerTask", "build_recipe", "checkpoint_store", "train_worker"]
