"""MLflow: a database in the run folder unless the user's MLFLOW_TRACKING_URI names another place."""

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslkit.contract.errors import RunFailedError
from sslkit.engine.loggers import lines_before, numbers, settings_of
from sslkit.extras import load_extra

_AT_ONCE = 1000  # metrics in one request, the most that a server accepts


class MlflowLogger:
    """Write to MLflow, by default to `mlflow/mlflow.db` in the run folder, without a server; `mlflow ui` shows it.

    Its own environment variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or the package reports its use to its makers
        load_extra("mlflow", "mlflow", "--log mlflow")
        load_extra("sqlalchemy", "mlflow", "--log mlflow")
        load_extra("alembic", "mlflow", "--log mlflow")
        self.folder = folder
        self._id_file = folder / "mlflow" / "run_id"
        self._client: Any = None
        self._run = ""

    def rewind(self, step: int) -> None:
        """Start a run with the settings and everything before `step`; that of an earlier session goes to MLflow's trash."""
        from mlflow import MlflowClient  # an optional dependency
        from mlflow.entities import Param

        self._id_file.parent.mkdir(exist_ok=True)
        database = f"sqlite:///{self._id_file.with_name('mlflow.db').absolute()}"
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sslkit")
        settings = [Param(name, str(value)) for name, value in settings_of(self.folder).items()]
        with _one_line():
            client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or database)
            known = client.get_experiment_by_name(experiment)
            place = client.create_experiment(experiment) if known is None else known.experiment_id
            earlier = self._id_file.read_text(encoding="utf-8") if self._id_file.exists() else ""
            self._run = client.create_run(place, run_name=self.folder.name).info.run_id
            client.log_batch(self._run, params=settings)
            if earlier:
                _delete(client, earlier)
        self._id_file.write_text(self._run, encoding="utf-8")
        self._client = client
        self._write(lines_before(self.folder, step))

    def log(self, line: dict[str, Any]) -> None:
        """Add the numbers of a line."""
        self._write([line])

    def close(self, failed: bool) -> None:
        """Finish the run."""
        if self._client is not None:
            with _one_line():
                self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _write(self, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, line["step"]) for line in lines for name, value in numbers(line).items()]
        with _one_line():
            for start in range(0, len(metrics), _AT_ONCE):
                self._client.log_batch(self._run, metrics=metrics[start : start + _AT_ONCE])


def _delete(client: Any, run: str) -> None:
    """Put a run into MLflow's trash, unless it is there or does not exist: the database is new, or another one."""
    from mlflow.exceptions import MlflowException

    try:
        stored = client.get_run(run)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return
    if stored.info.lifecycle_stage == "active":
        client.delete_run(run)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn an MlflowException into an error of one line; the packages below it warn and tell of themselves to nobody."""
    from mlflow.exceptions import MlflowException

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MlflowException as error:
        reason = str(error).partition("\n")[0]
        hint = "continue with --resume; leave out --log mlflow if the server is down"
        raise RunFailedError(f"mlflow: {reason}", hint) from error
