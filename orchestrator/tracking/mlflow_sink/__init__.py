"""The MLflow sink. The only folder of the project that imports mlflow, and only inside functions: loading it takes
more than a second, so that it happens where nobody waits for it.

Only `MlflowClient` is used: the fluent API keeps a run per process, and marks killed runs FINISHED.
"""

from orchestrator.tracking.mlflow_sink.models import download_artifacts
from orchestrator.tracking.mlflow_sink.process import mlflow_process
from orchestrator.tracking.mlflow_sink.runs import mark_dead
from orchestrator.tracking.mlflow_sink.sink import MlflowSink
from orchestrator.tracking.mlflow_sink.store import calling, connect

__all__ = ["MlflowSink", "calling", "connect", "download_artifacts", "mark_dead", "mlflow_process"]
