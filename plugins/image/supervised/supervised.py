"""Supervised learning, alone or beside a pretext task."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, SslkitError
from sslkit.encoders.drop_path import drop_paths
from sslkit.engine.classifier import choose_loss, describe_classifier
from sslkit.image.augmentation import ImageAugmentation
from sslkit.image.mixing import draw_mixing, mix
from sslkit.image.transforms import right_angle_rotations
from sslkit.image.views import CropOptions, CropScale, Share
from sslkit.nn import Teacher, class_targets, classification_loss, early_momentum, top_class_correct
from sslkit.pictures import add_frame


class Supervised(ImageTask):
    """Classify images by their labels: alone, or with `PRETEXT+supervised` beside a pretext task (S4L; Zhai et al., 2019).

    Samples without a label take part in the pretext task only. The classifier is kept, for `sslkit predict`.
    """

    class Options(CropOptions):
        """Options of `supervised`."""

        crop_scale: CropScale = 0.6
        loss: Literal["auto", "softmax", "sigmoid", "multi-hot"] = Field(
            default="auto",
            description="sigmoid: independent classes; multi-hot: softmax, target 1/k; auto: softmax, sigmoid if multi-label.",
        )
        label_smoothing: float = Field(
            default=0.0, ge=0, lt=1, description="Label smoothing: share of the target spread over all classes."
        )
        all_rotations: bool = Field(
            default=False, description="Classify each image in all four rotations, as S4L does beside rotation prediction."
        )
        randaugment: int = Field(default=0, ge=0, le=30, description="RandAugment magnitude (2 operations); 0: off.")
        erasing: Share = Field(default=0.0, description="Probability of random erasing.")
        mixup: float = Field(default=0.0, ge=0, description="Mixup alpha; 0: off.")
        cutmix: float = Field(default=0.0, ge=0, description="CutMix alpha; 0: off.")
        mixup_layer: int = Field(
            default=0,
            ge=0,
            description="Block whose output mixup and CutMix mix (manifold mixup, feature CutMix); 0: the image.",
        )
        drop_path: float = Field(
            default=0.0, ge=0, lt=1, description="Stochastic-depth rate of the last block, rising linearly from 0."
        )
        ema: float = Field(default=0.0, ge=0, lt=1, description="Decay of the weight EMA, which is then kept; 0: off.")

    options: Options
    needs: ClassVar = ("label",)
    several_labels: ClassVar = True
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "batch_size": 128}
    paper: ClassVar = Paper(
        source="section 3.4 of He et al. (2016), with the crops of its GoogLeNet reference",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 256,
            "epochs": 90,
            "lr": 0.1,
            "nesterov": False,
            "weight_decay": 1e-4,
            "warmup": 0.0,
            "crop_scale": 0.08,
        },
        unsupported=("a rate that falls in steps (here a cosine)", "color noise of AlexNet"),
    )
    preview_columns: ClassVar = ("image",)

    def build_head(self) -> nn.Module:
        """Build the linear classifier."""
        return nn.Linear(self.encoder.width, len(self.data.classes))

    def setup(self) -> None:
        """Set up augmentation, stochastic depth, averaged weights, and mixing inside the encoder."""
        options = self.options
        mixes = options.mixup > 0 or options.cutmix > 0
        self.kind = choose_loss(options.loss, self.data.several_labels)
        if options.all_rotations and mixes:
            raise SslkitError("the rotations of an image are not mixed", "leave mixup and cutmix out", flag="all_rotations")
        if options.mixup_layer and not mixes:
            raise SslkitError("nothing is mixed", "set --mixup or --cutmix, too", flag="mixup_layer")
        self.augmentation = ImageAugmentation(options, self.data.size)
        if options.drop_path:
            drop_paths(self.encoder, options.drop_path)
        self.average = Teacher(self.encoder, self.head) if options.ema else None
        self.mixed: tuple[Tensor, Tensor | None] | None = None  # shares and boxes of the batch inside the encoder
        if options.mixup_layer:
            blocks = self.encoder.sequence()
            if options.mixup_layer > len(blocks):
                raise SslkitError(
                    f"the encoder shows {len(blocks)} blocks that follow each other",
                    "use one of them, or 0",
                    flag="mixup_layer",
                )
            blocks[options.mixup_layer - 1].register_forward_hook(self._mix_halves)

    def transform(self, batch: Batch) -> Batch:
        """Return images `[B, C, S, S]`, targets `[B, classes]` and `weight` `[B]`, which is 0 without a label.

        With rotations, images are `[B, 4, C, S, S]`; to be mixed inside the encoder, `[B, 2, C, S, S]`, each with its partner.
        """
        options, label = self.options, batch["label"]
        known = label.amax(dim=1) >= 0 if self.data.several_labels else label >= 0
        target = class_targets(label.clamp(min=0), len(self.data.classes), self.kind == "sigmoid")
        image = self.augmentation.change(batch)
        entries: dict[str, Tensor] = {"weight": known.float() * len(known) / known.sum().clamp(min=1)}
        if options.all_rotations:
            image = right_angle_rotations(image)
        elif options.mixup or options.cutmix:
            mixing = draw_mixing(known, options.mixup, options.cutmix)
            partner, target = image[mixing.partner], mixing.mix_targets(target)
            if options.mixup_layer:
                image = torch.stack([image, partner], dim=1)
                entries |= {"kept": mixing.kept, **({} if mixing.box is None else {"box": mixing.box})}
            else:
                image = mix(image, partner, mixing.kept, mixing.box)
        return {"image": image, "target": target, **entries}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits `[B, classes]`, or `[B, 4, classes]` of rotations."""
        if not self.options.mixup_layer:
            return self.each_view(lambda image: self.head(self.encoder(image)), batch["image"])
        self.mixed = batch["kept"], batch.get("box")
        features = self.encoder(torch.cat(batch["image"].unbind(1)))
        self.mixed = None
        logits: Tensor = self.head(features)
        return logits

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the cross-entropies of samples with a label."""
        views = output if output.dim() == 3 else output[:, None]
        smoothing, sigmoid = self.options.label_smoothing, self.kind == "sigmoid"
        losses = [classification_loss(view, batch["target"], smoothing, sigmoid) for view in views.unbind(1)]
        return {"class": (torch.stack(losses).mean(dim=0) * (batch["weight"] > 0)).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of samples with a label."""
        return {"class": (batch["weight"] > 0).sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy of upright images over samples with a label."""
        upright = output if output.dim() == 2 else output[:, 0]
        return {"accuracy": top_class_correct(upright, batch["target"]) * batch["weight"]}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the classes."""
        return {} if self.data.several_labels else {"accuracy": 1 / len(self.data.classes)}

    def after_step(self, remembered: Batch) -> None:
        """Move the averaged weights."""
        if self.average is not None:
            self.average.update(self.encoder, self.head, momentum=early_momentum(self.options.ema, self.clock))

    def exports(self) -> dict[str, nn.Module]:
        """Return encoder and classifier, averaged if they were."""
        encoder, head = (self.encoder, self.head) if self.average is None else self.average.parts
        return {"encoder": encoder, "head": head}

    def metadata(self) -> dict[str, Any]:
        """Return what the classifier predicts, and how."""
        return describe_classifier(self.data.classes, self.kind, self.data.several_labels)

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return images; once trained, framed green where the prediction is correct, else red."""
        image: Tensor = batch["image"] if batch["image"].dim() == 4 else batch["image"][:, 0]
        if output is None:
            return image[:, None]
        upright = output if output.dim() == 2 else output[:, 0]
        return add_frame(image[:, None], top_class_correct(upright, batch["target"])[:, None] > 0)

    def _mix_halves(self, block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Mix what a block makes of images with what it makes of their partners, which are the second half of the batch."""
        if self.mixed is None:  # features are read
            return output
        images, partners = output.chunk(2)
        return mix(images, partners, *self.mixed, prefix=self.encoder.prefix)
