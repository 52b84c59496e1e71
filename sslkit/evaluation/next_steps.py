"""The commands that a finding ends with: complete lines for a shell, with the data of the evaluation they follow."""

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sslkit.contract.errors import SslkitError
from sslkit.contract.modality import Modality
from sslkit.contract.options import Spec
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.run_command import flag_words, run_command
from sslkit.engine.run_folder import holds_run, read_spec
from sslkit.registry import load_modality
from sslkit.specs.data import ANNOTATIONS, DataSpec
from sslkit.specs.train import ENOUGH_STEPS

_OF_MACHINE = ("precision", "compile", "sync_batchnorm", "micro_batch")  # `auto` chooses them again
LONGER = 4  # times as much training: less is seldom seen in a number


@dataclass(frozen=True)
class NextSteps:
    """Write commands that follow an evaluation of a checkpoint with these options."""

    spec: Spec
    checkpoint: Checkpoint
    verb: str = ""  # of the evaluation

    @cached_property
    def recorded(self) -> dict[str, Any]:
        """Return the recorded spec of the run beside the checkpoint, empty if there is none to read."""
        try:
            return read_spec(self.checkpoint.path.parent)
        except SslkitError:
            return {}

    @property
    def of_checkpoint(self) -> dict[str, Any]:
        """Return the spec in the checkpoint's own description, which has no paths."""
        spec = self.checkpoint.metadata.get("spec")
        return spec if isinstance(spec, dict) else {}

    @property
    def can_finetune(self) -> bool:
        """Return whether encoders of this modality can be fine-tuned."""
        return type(load_modality(self.checkpoint.modality)).augmentation is not Modality.augmentation

    @property
    def longer(self) -> int:
        """Return a number of steps that should show."""
        return max(ENOUGH_STEPS, LONGER * int(self.checkpoint.metadata["step"]))

    def evaluate(self, verb: str, *flags: str) -> str:
        """Return the command that evaluates the checkpoint by another verb, on the same data."""
        words = ["sslkit", verb, "--ckpt", str(self.checkpoint.path)]
        # What the same verb cannot do without, such as a file of labels.
        required = [name for name, field in type(self.spec).model_fields.items() if field.is_required() and name != "ckpt"]
        for name in ("part", "data", *ANNOTATIONS, "test", *(required if verb == self.verb else ())):
            if name in self.spec.model_fields_set and getattr(self.spec, name, None) not in (None, []):
                words += flag_words(name, getattr(self.spec, name))
        factory = getattr(self.spec, "encoder", None) or ""
        if ":" in factory and not factory.startswith("torchvision:"):  # it may be imported
            words += flag_words("encoder", factory)
        if isinstance(self.spec, DataSpec):
            for name, value in self.spec.sample_values().items():
                words += flag_words(name, value)
        return shlex.join([*words, *flags])

    @property
    def add_scratch(self) -> str:
        """Return the command that trains from random weights, too, in the folder of this fine-tuning."""
        return shlex.join(["sslkit", "finetune", "--resume", "--scratch", "--out", str(getattr(self.spec, "out", ""))])

    def on_checkpoint(self, verb: str) -> str:
        """Return the command of a verb that needs nothing but the checkpoint in its run folder."""
        return shlex.join(["sslkit", verb, "--ckpt", str(self.checkpoint.path)])

    @cached_property
    def train_longer(self) -> str:
        """Return the command that pretrains as the checkpoint was, for more steps; `auto` chooses precision and the like."""
        if self.recorded:
            settings = {name: value for name, value in self.recorded.items() if name not in _OF_MACHINE}
            return run_command({**settings, "data": _shorter(str(settings.get("data")))}, self.longer)
        data = getattr(self.spec, "data", None)
        flags = [*flag_words("data", data), "--steps", str(self.longer)] if data else ["--help"]
        return shlex.join(["sslkit", "pretrain", str(self.checkpoint.metadata["task"]), *flags])

    def report(self, trained: Path) -> str:
        """Return the command that writes a page about the run of a checkpoint, nothing if it lies in none."""
        return shlex.join(["sslkit", "report", str(trained.parent)]) if holds_run(trained.parent) else ""


def _shorter(data: str) -> str:
    """Return a path in the current folder as one writes it there, anything else as it is."""
    path = Path(data)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else data
