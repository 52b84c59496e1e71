"""`sslkit new-task`: a package with a task of one's own, ready to change and to publish."""

from dataclasses import dataclass

from sslkit import registry
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import CONTRACT
from sslkit.scaffolding import check_name, new_folder, write_new_folder
from sslkit.specs.extend import NewTaskSpec

_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "sslkit-{dashed}"
version = "0.1.0"
description = "The pretext task {name} for sslkit."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["sslkit"]

[project.optional-dependencies]
dev = ["pytest"]

[project.entry-points."sslkit.tasks"]
{name} = "sslkit_{name}:{title}"

[tool.setuptools]
py-modules = ["sslkit_{name}"]
""",
    "sslkit_{name}.py": '''\
"""A pretext task for sslkit."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, TaskOptions


class {title}(ImageTask):
    """Predict whether an image is upside down: replace this with your own idea."""

    class Options(TaskOptions):
        """Options of {name}; each is a flag: `--crop-scale 0.5`."""

        crop_scale: float = Field(default=0.6, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")

    contract: ClassVar = {contract}  # the version of sslkit's contract that this was written for
    options: Options
    defaults: ClassVar = {{"batch_size": 128}}

    def build_head(self) -> nn.Module:
        """Build the head, which is dropped after pretraining."""
        return nn.Linear(self.encoder.width, 2)

    def transform(self, batch: Batch) -> Batch:
        """Return images `[B, C, S, S]`, half of them upside down, and labels `[B]`; on the device, without gradient."""
        image = self.crop(batch)
        turned = torch.rand(len(image), device=image.device) < 0.5
        return {{"image": torch.where(turned[:, None, None, None], image.flip(2), image), "turned": turned.long()}}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits `[B, 2]`."""
        return F.cross_entropy(output, batch["turned"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether each prediction is right."""
        return {{"accuracy": (output.argmax(dim=1) == batch["turned"]).float()}}

    def chance(self) -> dict[str, float]:
        """Return the share that guesses get right."""
        return {{"accuracy": 0.5}}
''',
    "test_{name}.py": '''\
"""{title} keeps the promises of sslkit's contract."""

import pytest
from sslkit.testing import check_task
from sslkit_{name} import {title}


@pytest.mark.parametrize("full", [False, True])
def test_contract(full: bool) -> None:
    """Keep every promise; the full check takes half a minute."""
    broken = [verdict for verdict in check_task({title}, full=full) if not verdict.passed]
    assert not broken, broken
''',
    "README.md": """\
# {name}

A pretext task for [sslkit](https://pypi.org/project/sslkit/): what it learns, and its paper.

```
pip install sslkit-{dashed}        # while it is not published: pip install -e .
sslkit pretrain {name} --data DIR
sslkit knn --ckpt runs/{name}/model.safetensors
```

`pip install -e '.[dev]' && pytest` proves that micro-batches, processes and resuming change nothing; `sslkit preview {name}
--data DIR` shows its inputs and targets.
""",
}


# The package sslkit_plugins is ours; the others are names that the task's class would hide from its own module.
_RESERVED = frozenset({"plugins", "batch", "tensor", "field", "image_task", "task_options"})


@dataclass(frozen=True)
class NewTaskResult:
    """The result of `sslkit new-task`."""

    name: str
    folder: str
    files: list[str]


def new_task(spec: NewTaskSpec) -> NewTaskResult:
    """Write a package with a task that works, its test, and its entry point; everything `sslkit new-task` does.

    Raises SslkitError for a name that Python or an installed task has, and for a folder that is there.
    """
    name = spec.name
    check_name(name, _RESERVED, "tilt or odd_one_out")
    if name in registry.names(registry.TASKS):
        raise SslkitError(f"NAME: a task {name} is already installed", "choose another name")
    folder = new_folder(spec.out, name)
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "title": "".join(part.capitalize() for part in name.split("_")),
        "contract": CONTRACT,
    }
    written = {file.format(**words): text.format(**words) for file, text in _FILES.items()}
    write_new_folder(folder, written)
    return NewTaskResult(name, str(folder), sorted(written))
