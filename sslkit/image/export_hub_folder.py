"""Export as a folder for the Hugging Face Hub, which timm loads."""

import math
from pathlib import Path
from typing import Any, ClassVar

import timm
from timm.models import save_for_hf

from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import DESCRIPTION, ExportJob, Settings
from sslkit.image.encoders.narrow import replace_narrow_convolutions
from sslkit.image.export import Timm, classifier_state, model_options, normalization, normalizing_line


class HubFolder(Timm):
    """Folder for the Hugging Face Hub that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""

    suffix = "-hf"
    files: ClassVar = ("README.md", "config.json", "model.safetensors")
    reader = Path(__file__).with_name("read_hub_folder.py")

    def check(self, job: ExportJob) -> None:
        """Raise SslkitError for an encoder that timm does not rebuild."""
        super().check(job)
        self._model = self.rebuild(job)

    def write(self, job: ExportJob, samples: Any, path: Path) -> Settings:
        """Write config.json and model.safetensors by timm's own writer, with the encoder's size, crop, mean and std."""
        encoder, _ = self.timm_encoder(job)
        model = self._load(job)
        statistics, arguments = normalization(encoder), model_options(job, encoder)
        if model.pretrained_cfg.get("fixed_input_size"):  # timm would build one of the size that is written below
            arguments.setdefault("img_size", model.pretrained_cfg["input_size"][1:])
        model.pretrained_cfg = model.pretrained_cfg | {
            **statistics,
            **_preprocessing(job),
            "input_size": (encoder.in_channels, job.size, job.size),
            "num_classes": len(job.classes),
            "license": job.license,
        }
        described = {**({"label_names": job.classes} if job.classes else {}), DESCRIPTION: job.description}
        save_for_hf(model, str(path), described, arguments, safe_serialization=True)
        return {"name": path.name, **statistics}

    def loading(self, name: str, settings: Settings, output: str) -> list[str]:
        """Return lines that need torch and timm."""
        return [
            "import timm, torch",
            f'model = timm.create_model("local-dir:{name}", pretrained=True).eval()  # of the Hub: "hf-hub:OWNER/NAME"',
            normalizing_line(settings),
            f"{output} = model(image)",
        ]

    def front_matter(self, job: ExportJob) -> dict[str, Any]:
        """Return the library, the tags and the license, by which the Hub lists a model."""
        return {
            "library_name": "timm",
            "pipeline_tag": "image-classification" if job.classes else "image-feature-extraction",
            "tags": ["timm", "sslkit", "self-supervised-learning"],
            **job.license_entry,
        }

    def rebuild(self, job: ExportJob) -> Any:
        """Return timm's model without a classifier, built anew; raises SslkitError if it is not the encoder's."""
        encoder, model = self.timm_encoder(job)
        try:
            rebuilt: Any = timm.create_model(job.recipe["name"], **model_options(job, encoder) | {"num_classes": 0})
        except (RuntimeError, TypeError, ValueError) as error:  # of options that are not timm's
            raise _other_model(job) from error
        replace_narrow_convolutions(rebuilt)  # as in the encoder
        if repr(rebuilt) != repr(model):
            raise _other_model(job)
        return rebuilt

    def _load(self, job: ExportJob) -> Any:
        """Return the model that was rebuilt, with its classifier and weights; raises SslkitError if they do not fit."""
        encoder, model = self.timm_encoder(job)
        try:
            rebuilt = timm.create_model(job.recipe["name"], **model_options(job, encoder)) if job.classes else self._model
            rebuilt.load_state_dict(model.state_dict() | classifier_state(job, model))
        except (RuntimeError, TypeError, ValueError) as error:
            raise _other_model(job) from error
        return rebuilt.eval()


def _other_model(job: ExportJob) -> SslkitError:
    problem = f"timm.create_model does not rebuild {job.recipe['name']} as it was trained"
    return SslkitError(problem, "use --to onnx or pt2", flag="to")


def _preprocessing(job: ExportJob) -> dict[str, Any]:
    """Return what timm's transform for evaluation has to do to come closest to ours."""
    facts = job.description["input"]
    side = round(job.size * facts["resize"] / facts["crop"])  # to which the short side is resized
    share = job.size / side
    while math.floor(job.size / share) < side:  # which is how timm computes it
        share = math.nextafter(share, 0)
    others = dict.fromkeys(("test_input_size", "test_crop_pct", "min_input_size", "pool_size"))
    return {"interpolation": facts["interpolation"], "crop_mode": "center", "crop_pct": share, **others}
