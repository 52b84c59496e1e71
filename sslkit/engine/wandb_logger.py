"""Weights & Biases: offline unless the user's WANDB_MODE says otherwise."""

import os
import shutil
from glob import escape
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sslkit.contract.errors import SslkitError
from sslkit.engine.loggers import lines_before, numbers, settings_of
from sslkit.extras import load_extra

_QUIET = {"silent": True, "console": "off", "disable_git": True, "disable_code": True, "x_disable_stats": True}


class WandbLogger:
    """Write to Weights & Biases, by default offline, to the folder `wandb` of the run; `wandb sync` uploads it.

    Its own environment variables hold: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or the package reports its own errors to its makers
        self.wandb = load_extra("wandb", "wandb", "--log wandb")
        try:
            self._settings = self.wandb.Settings(mode=os.environ.get("WANDB_MODE", "offline"), **_QUIET)
        except ValidationError as error:
            wrong = error.errors()[0]
            problem = f"{wrong['input']} is no {wrong['loc'][-1]} of wandb's"
            raise SslkitError(problem, f"WANDB_MODE: {wrong['msg']}", flag="log") from error
        self.folder = folder
        self._id_file = folder / "wandb" / "run_id"
        self._run: Any = None

    def rewind(self, step: int) -> None:
        """Start a run with the settings and everything before `step`; one that an earlier session left offline goes."""
        earlier = self._earlier_runs()
        try:
            self._run = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT", "sslkit"),
                name=self.folder.name,
                dir=str(self.folder),
                config=settings_of(self.folder),
                reinit="create_new",  # of several trainings in one process, and beside a run of the caller's
                settings=self._settings,
            )
        except self.wandb.Error as error:
            reason = str(error).partition("\n")[0]
            raise SslkitError(f"wandb: {reason}", "without WANDB_MODE it writes to the run folder only", flag="log") from error
        for run in earlier:
            shutil.rmtree(run)
        if self._id_file.parent.is_dir():  # not there with WANDB_MODE=disabled
            self._id_file.write_text(self._run.id, encoding="utf-8")
        for line in lines_before(self.folder, step):
            self.log(line)

    def log(self, line: dict[str, Any]) -> None:
        """Add the numbers of a line."""
        self._run.log(numbers(line), step=line["step"])

    def close(self, failed: bool) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))

    def _earlier_runs(self) -> list[Path]:
        """Return the folder of the run that an earlier session wrote offline, if there is one; other runs stay."""
        recorded = self._id_file.read_text(encoding="utf-8") if self._id_file.exists() else ""
        return list(self._id_file.parent.glob(f"offline-run-*-{escape(recorded)}")) if recorded else []
