"""The checkpoints of a run: what `resume.pt` and `model.safetensors` hold, and the recorded spec."""

from dataclasses import dataclass
from typing import Any

from sslkit.contract.encoder import Encoder
from sslkit.contract.options import path_options
from sslkit.encoders.recipe import read_recipe
from sslkit.engine.checkpoint import describe, save_tensors
from sslkit.engine.hub import is_hub_address
from sslkit.engine.job import TrainingJob
from sslkit.engine.kept_parts import kept_parts
from sslkit.engine.resume_file import save_resume
from sslkit.engine.run_folder import MODEL, RESUME, SPEC, RunFolder
from sslkit.engine.sharded_tensors import full_values
from sslkit.engine.stepper import Stepper
from sslkit.registry import data_options, load_modality
from sslkit.specs.train import PretrainSpec, TrainSpec

_WHERE = {"out", "resume", "devices", "shard"}  # where a run goes on is not part of it


@dataclass
class CheckpointWriter:
    """Write the checkpoints of a run: `resume.pt` and `model.safetensors`, which belong together."""

    job: TrainingJob
    stepper: Stepper
    folder: RunFolder
    fingerprint: str

    def __post_init__(self) -> None:
        self.spec: TrainSpec = self.job.settings.spec
        self._kept_parts()  # which refuses unknown ones before the first step

    def write(self, state: dict[str, Any]) -> None:
        """Write both files atomically; the first process does. Raises RunFailedError for a state that is not finite."""
        exports = {name: full_values(dict(module.state_dict())) for name, module in self.stepper.task.exports().items()}
        exports |= full_values(self._kept_parts())
        if not self.folder.writes:  # after all processes have contributed their parts
            return
        if self.stepper.predict.fell_back and self.spec.compile == "on":
            self.spec = self.spec.model_copy(update={"compile": "off"})  # so that a resumed run does the same
            self.write_spec()
        self.stepper.check_state(state)
        with self.folder.writing():
            save_resume(self.folder.file(RESUME), {**state, "data": self.fingerprint})
            save_tensors(self.folder.file(MODEL), exports, self.metadata())

    def _kept_parts(self) -> dict[str, dict[str, Any]]:
        chosen = self.spec.keep_parts if isinstance(self.spec, PretrainSpec) else []
        return kept_parts(self.stepper.task, self.job.name, chosen) if chosen else {}

    def write_spec(self) -> None:
        """Record the spec of the run."""
        self.folder.write_json(SPEC, self.spec.model_dump(mode="json", exclude=_WHERE | self._other_tables()))

    def _other_tables(self) -> set[str]:
        """Return the spec's tables of data options that are not of this run's modality."""
        return self.spec.other_tables(self.stepper.settings.data.modality)

    def _describe_part(self, encoder: Encoder) -> dict[str, Any]:
        """Return the description of an encoder beside the main one; it may be of another modality than the run's samples."""
        settings = self.stepper.settings
        of_run = encoder.modality == settings.encodes
        description = describe(encoder)
        return {
            **{key: description[key] for key in ("modality", "recipe", "encoder_from", "normalization")},
            "samples": load_modality(settings.data.modality if of_run else encoder.modality).evaluated_as,
            "size": settings.data.size if of_run else read_recipe(encoder.recipe).plain[0].size,
            "data": settings.source.evaluation_fingerprint() if of_run else "",
        }

    def metadata(self) -> dict[str, Any]:
        """Return the description that goes into `model.safetensors`; it holds no path of this machine."""
        clock, task, source = self.stepper.clock, self.stepper.task, self.stepper.settings.source
        exported = task.exports()
        others = {name: module for name, module in exported.items() if name != "encoder"}
        private = {*_WHERE, "data", "test", "init", "init_part", "ckpt", "task"}  # of somebody's machine
        if self.spec.init is not None and is_hub_address(self.spec.init):
            private.remove("init")  # of no machine; the repository may be private, and `sslkit push` names it
        excluded: dict[str, Any] = {name: set(options.paths) for name, options in data_options().items()}
        excluded |= dict.fromkeys(private | self._other_tables(), True)
        spec = self.spec.model_dump(mode="json", exclude=excluded)
        if isinstance(self.spec, PretrainSpec):
            paths = path_options(type(task.options))
            spec["options"] = {name: value for name, value in self.spec.options.items() if name not in paths}
        return {
            **describe(task.encoder),
            "parts": {name: self._describe_part(module) for name, module in others.items() if isinstance(module, Encoder)},
            "samples": load_modality(self.stepper.settings.data.modality).evaluated_as,
            "task": self.job.name,
            "role": "student" if exported["encoder"] is task.encoder else "teacher",
            "spec": spec,
            "size": self.stepper.settings.data.size,
            "data": source.evaluation_fingerprint(),
            **({"sample_details": details} if (details := source.sample_details()) else {}),
            "step": clock.step,
            "steps": clock.steps,
            "extended_from": clock.schedule_start,
            **({"masked": True} if task.masked else {}),
            **({"task_metadata": added} if (added := task.metadata()) else {}),
            **self.job.metadata,
        }
