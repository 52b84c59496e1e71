"""MLflow: a store in the run folder unless the user's MLFLOW_TRACKING_URI names another."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

from sslkit.contract.errors import RunFailedError, SslkitError
from sslkit.engine.loggers import logged_before, numbers, settings_of
from sslkit.extras import load_extra

_AT_ONCE = 1000  # metrics in one request, the most that a server accepts


class MlflowLogger:
    """Write to MLflow, by default to the folder `mlflow` of the run; `mlflow ui` shows it.

    Its own environment variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or the package reports its use to its makers
        load_extra("mlflow", "mlflow", "--log mlflow")
        self.folder = folder
        self._id_file = folder / "mlflow" / "run_id"
        self._client: Any = None
        self._run = ""

    def rewind(self, step: int) -> None:
        """Start a run with the settings and everything before `step`; one of an earlier session goes to MLflow's trash."""
        from mlflow import MlflowClient  # an optional dependency
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        store = self.folder / "mlflow" / "runs"
        store.mkdir(parents=True, exist_ok=True)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sslkit")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # about stores of files, which need nothing else
                client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or store.absolute().as_uri())
            known = client.get_experiment_by_name(experiment)
            if self._id_file.exists():
                client.delete_run(self._id_file.read_text())
            place = client.create_experiment(experiment) if known is None else known.experiment_id
            self._run = client.create_run(place, run_name=self.folder.name).info.run_id
            self._id_file.write_text(self._run)
            client.log_batch(self._run, params=[Param(name, str(value)) for name, value in settings_of(self.folder).items()])
        except MlflowException as error:
            raise SslkitError(f"mlflow: {str(error).partition(chr(10))[0]}", flag="log") from error
        self._client = client
        self._write(logged_before(self.folder, step))

    def log(self, line: dict[str, Any]) -> None:
        """Add the numbers of a line."""
        self._write([line])

    def close(self) -> None:
        """Finish the run."""
        if self._client is not None:
            self._client.set_terminated(self._run)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, line["step"]) for line in lines for name, value in numbers(line).items()]
        try:
            for start in range(0, len(metrics), _AT_ONCE):
                self._client.log_batch(self._run, metrics=metrics[start : start + _AT_ONCE])
        except MlflowException as error:
            raise RunFailedError(f"mlflow: {str(error).partition(chr(10))[0]}", "--resume continues") from error
