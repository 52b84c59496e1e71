"""`sslkit demo`: everything once, on images that are made of what ships with scikit-learn."""

from dataclasses import dataclass, field
from pathlib import Path

from sslkit.console import say
from sslkit.contract.result import Result
from sslkit.image.digits import write_digits
from sslkit.specs.evaluation import ProbeSpec
from sslkit.specs.train import DemoSpec, FinetuneSpec, PretrainSpec
from sslkit.specs.use import ExportSpec

TASK = "rotation"  # only the shape of a digit tells which way up it is, as only the shape tells which digit it is
_SIZE, _BATCH = 16, 64  # pixels and images per step: small, for 500 steps in a minute on two cores
_FEW_LABELS = {"shares": [0.05], "seeds": 3, "epochs": 30, "batch_size": 32}  # eighteen images of each digit


@dataclass(frozen=True)
class DemoResult:
    """The result of `sslkit demo`: what it wrote, and its evaluations; only the images with `--images-only`."""

    images: str
    run: str | None = None
    checkpoint: str | None = None
    export: str | None = None
    results: list[Result] = field(default_factory=list)


def demo(spec: DemoSpec) -> DemoResult:
    """Write images, pretrain on them without labels, evaluate beside baselines, fine-tune on few labels, and export."""
    images = Path(spec.out, "images")
    write_digits(images, spec.seed)
    if spec.images_only:
        return DemoResult(str(images))
    # Only now: the rest needs torch.
    from sslkit.engine.pretrain import pretrain
    from sslkit.evaluation.finetune import finetune
    from sslkit.evaluation.probe import probe
    from sslkit.exporting.export import export

    run = pretrain(
        PretrainSpec.model_validate(
            {
                "task": TASK,
                "data": str(images),
                "out": str(Path(spec.out, "run")),
                "size": _SIZE,
                "steps": spec.steps,
                "batch_size": _BATCH,
                "seed": spec.seed,
            }
        )
    )
    say("a linear classifier on the features", style="bold")
    linear = probe(ProbeSpec(ckpt=run.checkpoint, seed=spec.seed))
    say("fine-tuning on 5% of the labels, three times, and the same from random weights", style="bold")
    tuned = finetune(
        FinetuneSpec.model_validate(
            {"ckpt": run.checkpoint, "out": str(Path(spec.out, "finetune")), "seed": spec.seed, "scratch": True, **_FEW_LABELS}
        )
    )
    exported = export(ExportSpec(ckpt=run.checkpoint, to="pt2"))
    return DemoResult(str(images), run.run, run.checkpoint, exported.path, [linear, tuned])
