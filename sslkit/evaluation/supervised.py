"""Training on labels under the same contract as pretraining: what `sslkit finetune` runs."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import Batch, DataInfo, PretextTask
from sslkit.encoders.drop_path import drop_paths
from sslkit.encoders.recipe import encoder_name
from sslkit.engine.classifier import choose_loss
from sslkit.engine.micro_batches import BATCH_NORM
from sslkit.evaluation.distillation import Distillation, TwoHeads
from sslkit.nn import Teacher, class_targets, classification_loss, early_momentum, top_class_correct
from sslkit.registry import load_modality
from sslkit.specs.train import FinetuneSpec


class Supervised(PretextTask):
    """Classify samples by one label or several: not a pretext task, but under the same contract."""

    needs: ClassVar = ("index",)
    options: FinetuneSpec
    labels: Tensor

    def __init__(self, spec: FinetuneSpec, encoder: Encoder, data: DataInfo, labels: Tensor, classes: tuple[str, ...]) -> None:
        self.class_names, self.classes = classes, len(classes)
        self.augment = load_modality(data.modality).augmentation(spec, data, self.classes)
        super().__init__(spec, encoder, data)
        self.kind = choose_loss(spec.loss, several=labels.dim() == 2)
        if self.kind != "softmax" and spec.teacher is not None:
            raise SslkitError("a teacher's classes exclude each other", "use softmax, or no --teacher", flag="loss")
        self.register_buffer("labels", labels, persistent=False)

    def build_head(self) -> nn.Module:
        """Build the linear classifier, or one for each token."""
        if self.options.teacher is not None and self.options.distill == "token":
            if "distillation_token" not in self.encoder.provides:
                raise SslkitError(
                    f"token needs an encoder with a distillation token, and {encoder_name(self.encoder.recipe)} has none",
                    "use --encoder vit_micro --encoder-option distilled=true, or hard or soft",
                    flag="distill",
                )
            return TwoHeads(self.encoder, self.classes)
        return nn.Linear(self.encoder.width, self.classes)

    def setup(self) -> None:
        """Choose the trained parameters, and set up stochastic depth, averaged weights and the teacher."""
        options, stages = self.options, self.encoder.stages()
        self.distillation = None if options.teacher is None else Distillation(options, self.data, self.class_names)
        if len(stages) == 1 and (options.freeze_blocks or options.last_blocks is not None or options.layer_decay < 1):
            raise SslkitError(
                f"{encoder_name(self.encoder.recipe)} is not divided into blocks",
                "leave them out, or use a timm encoder",
                flag=("freeze_blocks", "last_blocks", "layer_decay"),
            )
        frozen = max(options.freeze_blocks, 0 if options.last_blocks is None else len(stages) - options.last_blocks)
        if max(options.freeze_blocks, options.last_blocks or 0) > len(stages):
            flag = "freeze_blocks" if options.freeze_blocks > len(stages) else "last_blocks"
            raise SslkitError(
                f"{encoder_name(self.encoder.recipe)} has {len(stages)} blocks, its stem counted",
                f"give 0 to {len(stages)}",
                flag=flag,
            )
        self.stages = [[parameter for parameter in stage if parameter.requires_grad] for stage in stages][frozen:]
        self.learning = {id(parameter) for stage in self.stages for parameter in stage}
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(id(parameter) in self.learning)
        if options.drop_path:
            drop_paths(self.encoder, options.drop_path)
        self.average = Teacher(self.encoder, self.head) if options.ema else None
        self.waiting = False  # whether the head still trains alone

    def train(self, mode: bool = True) -> "Supervised":
        """Keep the norms of frozen parts in eval mode: their statistics stay fixed, too."""
        super().train(mode)
        for norm in self.encoder.modules():
            if isinstance(norm, BATCH_NORM) and self._is_frozen(norm):
                norm.eval()
        if self.waiting:
            self.encoder.eval()
        return self

    def transform(self, batch: Batch) -> Batch:
        """Return samples as the modality augments them, called as the encoder's, and their targets `[B, classes]`.

        With a teacher also what it says of them, `taught` `[B, classes]`.
        """
        self._set_waiting(self.clock.epoch < self.options.head_first)
        target = class_targets(self.labels[batch["index"]], self.classes, self.kind == "sigmoid")
        inputs, target = self.augment(batch, target)
        if self.distillation is not None:
            inputs = {**inputs, "taught": self.distillation.target(inputs[self.encoder.modality])}
        return {**inputs, "target": target}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits `[B, classes]`, or `[B, 2, classes]` of two tokens."""
        logits: Tensor = self.head(self.encoder(batch[self.encoder.modality]))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of logits, of a softmax or of each class by itself, mixed with the loss of a teacher."""
        smoothing, sigmoid, distillation = self.options.label_smoothing, self.kind == "sigmoid", self.distillation
        student, taught = (output, output) if output.dim() == 2 else output.unbind(1)
        loss = classification_loss(student, batch["target"], smoothing, sigmoid)
        if distillation is not None:
            loss = torch.lerp(loss, distillation.loss(taught, batch["taught"]), distillation.weight)
        return loss.mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the likeliest class is (one of) the label(s), of mixed images the larger share's; or the teacher's."""
        logits = output if output.dim() == 2 else output.mean(dim=1)
        agreement = {}
        if self.distillation is not None:
            agreement["agreement"] = (logits.argmax(dim=1) == batch["taught"].argmax(dim=1)).float()
        return {"accuracy": top_class_correct(logits, batch["target"]), **agreement}

    def after_step(self, remembered: Batch) -> None:
        """Move the averaged weights."""
        if self.average is not None:
            self.average.update(self.encoder, self.head, momentum=early_momentum(self.options.ema, self.clock))

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the encoder's stages with their learning rates, where they differ from the head's."""
        options, depth = self.options, len(self.stages)
        if options.encoder_lr == options.layer_decay == 1:
            return []
        rate = options.lr * options.encoder_lr
        groups = [
            {"params": stage, "lr": rate * options.layer_decay ** (depth - place)} for place, stage in enumerate(self.stages)
        ]
        return [group for group in groups if group["params"]]

    def exports(self) -> dict[str, nn.Module]:
        """Return encoder and classifier, averaged if they were."""
        encoder, head = (self.encoder, self.head) if self.average is None else self.average.parts
        return {"encoder": encoder, "head": head.merge() if isinstance(head, TwoHeads) else head}

    def _is_frozen(self, norm: nn.Module) -> bool:
        parameters = [id(parameter) for parameter in norm.parameters()]
        return self.options.batchnorm == "eval" or (bool(parameters) and not self.learning.intersection(parameters))

    def _set_waiting(self, waiting: bool) -> None:
        """Freeze the encoder, its norms too, while the head trains alone; release it afterwards."""
        if waiting != self.waiting:
            self.waiting = waiting
            for stage in self.stages:
                for parameter in stage:
                    parameter.requires_grad_(not waiting)
                    parameter.grad = None
            self.train(self.training)
