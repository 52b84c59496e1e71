"""ALBEF (Li et al., 2021)."""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, TaskOptions
from sslkit.image.transforms import random_resized_crop
from sslkit.image.views import CropScale, Share
from sslkit.image_text.matcher import PART, CrossMatcher
from sslkit.image_text.task import (
    CaptionHash,
    bounded_scale,
    build_reading_tower,
    draw_partners,
    mask_captions,
    masked_accuracy,
    masked_nats,
)
from sslkit.nn import Momentum, Queue, Teacher, check_queue, momentum_reason, teacher_momentum
from sslkit.text.encoders.transformer import BidirectionalTransformer
from sslkit.text.masking import starts_word
from sslkit.text.tokenizer import Tokenizer

_PAPER_MOMENTUM = 0.995


class ALBEF(PretextTask):
    """Align images and captions, then fuse them: contrast, match, and hidden words (ALBEF; Li et al., 2021).

    A momentum teacher gives keys, soft targets, and the pairs that are hard to tell from matches. Images are not flipped,
    because captions distinguish left from right.
    """

    class Options(TaskOptions):
        """Options of `albef`."""

        text_width: int = Field(default=128, ge=4, multiple_of=4, description="Width of the text tower (768 in the paper).")
        text_depth: int = Field(default=2, ge=1, le=48, description="Blocks of the text tower (6 in the paper).")
        fusion_depth: int = Field(default=2, ge=1, le=48, description="Blocks that attend to the image (6 in the paper).")
        width: int = Field(default=128, ge=1, description="Width of the joint embedding (256 in the paper).")
        queue: int = Field(default=512, ge=1, description="Keys of past batches to contrast with (65,536 in the paper).")
        temperature: float = Field(default=0.07, ge=0.01, le=0.5, description="Initial temperature, which is learned.")
        momentum: Momentum = Field(default="auto", description="Momentum of the teacher (0.995 in the paper); auto: by steps.")
        distillation: Share = Field(
            default=0.4, description="Weight of the teacher's soft targets; it rises over the first epoch."
        )
        negatives: Literal["hard", "random"] = Field(
            default="hard", description="Pairs that do not match: sampled by the teacher's similarity, or uniformly."
        )
        mask_ratio: float = Field(default=0.15, gt=0, lt=1, description="Share of a caption's tokens that are hidden.")
        crop_scale: CropScale = 0.6

    options: Options
    text: BidirectionalTransformer
    starts_word: Tensor
    queue_caption: Tensor
    queue_image: Tensor
    modality: ClassVar = "image_text"
    encodes: ClassVar = "image"
    requires: ClassVar = ("tokens",)
    masked: ClassVar = True
    visible_targets: ClassVar = ("tokens",)  # inputs of a pair, and what is predicted of it
    defaults: ClassVar = {"encoder": "vit_micro", "lr": 1e-3, "weight_decay": 0.02, "batch_size": 64, "clip": 1.0}
    paper: ClassVar = Paper(
        source="section 3.4 of the paper, Pretrain.yaml of the authors",
        settings={
            "size": 256,
            "encoder": "vit_base_patch16_224",
            "batch_size": 512,
            "epochs": 30,
            "lr": 1e-4,
            "weight_decay": 0.02,
            "warmup": 7e-3,
            "text_width": 768,
            "text_depth": 6,
            "fusion_depth": 6,
            "width": 256,
            "queue": 65_536,
            "momentum": 0.995,
            "crop_scale": 0.2,
            "unit": "wordpiece",
            "vocabulary": 30_522,
            "context": 25,
        },
        unsupported=(
            "a text tower and fusion blocks that start from BERT's (--init-part starts the tower)",
            "keys of the batch itself beside those of the queue",
            "RandAugment, and flips that swap left and right in captions",
            "hard negatives by the student's similarities (here the teacher's)",
            "an image tower that starts from DeiT (--init does)",
            "a rate that begins and ends at a tenth",
        ),
    )
    preview_columns: ClassVar = ("image", "hard negative")

    def build_head(self) -> nn.Module:
        """Build the projector of images."""
        return nn.Linear(self.encoder.width, self.options.width, bias=False)

    def setup(self) -> None:
        """Build the text tower, its projector, the fusion blocks, the teacher of all these, and the queues."""
        options, details = self.options, self.data.details
        check_queue(options.queue, self.data)
        settings = {"width": options.text_width, "depth": options.text_depth}
        self.text = build_reading_tower(self.data, settings, options, "albef")
        width = self.text.width
        self.text_projector = nn.Linear(width, options.width, bias=False)
        self.matcher = CrossMatcher(self.encoder.width, width, self.text.in_channels, options.fusion_depth, self.text.heads)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(options.temperature)))
        self.teacher, self.text_teacher = Teacher(self.encoder, self.head), Teacher(self.text, self.text_projector)
        self.matcher_teacher = Teacher(self.matcher)
        self.image_queue, self.text_queue = (Queue(options.queue, options.width) for _ in range(2))
        for name in ("queue_caption", "queue_image"):
            self.register_buffer(name, torch.full((options.queue,), -1))
        self.caption_hash = CaptionHash(details["length"])
        self.register_buffer("starts_word", starts_word(Tokenizer.from_bytes(details["tokenizer"])), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return crops and captions, `image` `[B, C, S, S]` and `tokens` `[B, T]`; pairs that do not match, of the same and
        `other_image`, `other_tokens`, and which of them there are, `has_other` `[B, 2]`; hidden words, `hidden_tokens`,
        `places`, `target` and `weight` of `mask_tokens`; and the teacher's keys, `image_key` and `text_key` `[B, D]`, and
        states of hidden tokens, `soft` `[B, K, width]`.
        """
        options, tokens = self.options, batch["tokens"]
        image = random_resized_crop(batch["canvas"], self.data.size, (options.crop_scale, 1.0), aspect=batch["aspect"])
        identity = {"caption": self.caption_hash(tokens), "image_id": batch["image_id"]}
        hidden = mask_captions(tokens, self.starts_word, options.mask_ratio, "token", self.text.first_special)
        hidden_tokens = hidden["tokens"]
        encoder, head, text, matcher = self._teachers()
        image_tokens = encoder.tokens(image)
        image_key = F.normalize(head(encoder.pool(image_tokens)), dim=1)
        text_key = F.normalize(self.text_teacher(tokens), dim=1)
        states = matcher.fuse(matcher.memory(image_tokens), text.states(hidden_tokens), hidden_tokens)
        soft = states.gather(1, hidden["places"][..., None].expand(-1, -1, states.shape[2]))
        similarity = bounded_scale(self.log_scale) * image_key @ text_key.T
        hard = options.negatives == "hard"
        caption_of = draw_partners(identity, similarity if hard else None)
        image_of = draw_partners(identity, similarity.T if hard else None)
        own_place = torch.arange(len(tokens), device=tokens.device)
        return {
            **hidden,
            "image": image,
            "tokens": tokens,
            "other_image": image[image_of],
            "other_tokens": tokens[caption_of],
            "has_other": torch.stack([caption_of != own_place, image_of != own_place], dim=1).float(),
            "hidden_tokens": hidden_tokens,
            "image_key": image_key,
            "text_key": text_key,
            "soft": soft,
            **identity,
        }

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors, `image` and `text` `[B, D]`; logits of a match of the pair, of its image with another caption
        and of its caption with another image, `match` `[B, 3, 2]`; logits of hidden tokens, `hidden` `[B, K, ids]`, and the
        image's tokens as the fusion sees them, `places` `[B, M, width]`.
        """
        tokens, other_tokens, hidden_tokens = batch["tokens"], batch["other_tokens"], batch["hidden_tokens"]
        image_tokens = self.encoder.tokens(torch.cat([batch["image"], batch["other_image"]]))
        places, other_places = self.matcher.memory(image_tokens).chunk(2)
        first, other, hidden = self.text.states(torch.cat([tokens, other_tokens, hidden_tokens])).chunk(3)
        read = torch.cat([tokens, other_tokens, tokens, hidden_tokens])
        states = torch.cat([first, other, first, hidden])
        fused = self.matcher.fuse(torch.cat([places, places, other_places, places]), states, read)
        count = 3 * len(tokens)
        pooled = self.encoder.pool(image_tokens[: len(tokens)])
        return {
            "image": F.normalize(self.head(pooled), dim=1),
            "text": F.normalize(self.text_projector(self.text.pool_sample(first, tokens)), dim=1),
            "match": torch.stack(self.matcher.match_logits(fused[:count], read[:count]).chunk(3), dim=1),
            "hidden": self.matcher.predict_words(fused[count:], batch["places"], self.text),
            "places": places,
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the contrast with the queues, and the sums over matches and hidden tokens, which `counts` divides.

        (Section 3.2.) The targets of the first and the last are in part the teacher's (equations 6 and 7).
        """
        contrast = (
            self._contrast(output["image"], "image", "text", batch) + self._contrast(output["text"], "text", "image", batch)
        ) / 2
        match = F.cross_entropy(output["match"].flatten(0, 1), self._match(batch).flatten(), reduction="none")
        share, nats = self._distillation(), masked_nats(output["hidden"], batch)
        _, _, text, matcher = self._teachers()
        soft = matcher.lm(batch["soft"], text.token.weight).detach().softmax(dim=2)
        distilled = -(soft * output["hidden"].log_softmax(dim=2)).sum(dim=2) * batch["weight"]
        return {
            "contrast": contrast.mean(),
            "match": (match.view(-1, 3) * self._real(batch)).sum(),
            "masked_nats": torch.lerp(nats, distilled, share).sum(),
        }

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of pairs that are classified, and of hidden tokens."""
        return {"match": self._real(batch).sum(), "masked_nats": batch["weight"].sum()}

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the keys, and what tells which pairs match."""
        return {name: batch[name] for name in ("image_key", "text_key", "caption", "image_id")}

    def after_step(self, remembered: Batch) -> None:
        """Update the teacher, and put the keys into the queues."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM)
        self.teacher.update(self.encoder, self.head, momentum=momentum)
        self.text_teacher.update(self.text, self.text_projector, momentum=momentum)
        self.matcher_teacher.update(self.matcher, momentum=momentum)
        count = min(len(remembered["caption"]), len(self.queue_caption))
        places = (self.image_queue.position + torch.arange(count, device=self.queue_caption.device)) % len(self.queue_caption)
        self.queue_caption[places], self.queue_image[places] = remembered["caption"][-count:], remembered["image_id"][-count:]
        self.image_queue.push(remembered["image_key"])
        self.text_queue.push(remembered["text_key"])

    @torch.no_grad()
    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often matches (half, those that are and those that are not) and hidden tokens are recognized, the cosine
        of a pair, and `image_gain`: by how many nats a hidden token is likelier with its image than with another one.
        """
        correct, real = (output["match"].argmax(dim=2) == self._match(batch)).float(), self._real(batch)
        count = real[:, 1:].sum(dim=1)
        others = ((correct * real)[:, 1:].sum(dim=1) / count.clamp(min=1)).where(count > 0, 1 / 2)
        states = self.text.states(batch["hidden_tokens"])
        fused = self.matcher.fuse(output["places"].roll(1, 0), states, batch["hidden_tokens"])
        other = masked_nats(self.matcher.predict_words(fused, batch["places"], self.text).float(), batch)
        sizes = batch["weight"].sum(dim=1).clamp(min=1)
        return {
            "match_accuracy": (correct[:, 0] + others) / 2,
            "accuracy": masked_accuracy(output["hidden"], batch),
            "alignment": (output["image"] * output["text"]).sum(dim=1),
            "image_gain": (other - masked_nats(output["hidden"], batch)).sum(dim=1) / sizes,
        }

    def chance(self) -> dict[str, float]:
        """Return how often a guess recognizes a match, and what a caption gains from a random image."""
        return {"match_accuracy": 1 / 2, "image_gain": 0.0}

    def reasons(self) -> dict[str, str]:
        """Return what the momentum became."""
        return momentum_reason(self.options.momentum, self.clock, _PAPER_MOMENTUM)

    def exports(self) -> dict[str, nn.Module]:
        """Return both encoders and their projectors for `sslkit zeroshot`, and the matcher for it and for `sslkit pairs`."""
        towers = {"encoder": self.encoder, "text": self.text, "projector": self.head}
        return {**towers, "text_projector": self.text_projector, PART: self.matcher}

    def metadata(self) -> dict[str, Any]:
        """Return what the matcher is built with."""
        return {PART: self.matcher.describe()}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return images, and beside each the one that its caption is also tried with."""
        return torch.stack([batch["image"], batch["other_image"]], dim=1)

    def _teachers(self) -> tuple[Any, ...]:
        """Return the averages of encoder, projector, text tower and matcher."""
        return (*self.teacher.parts, self.text_teacher.parts[0], *self.matcher_teacher.parts)

    def _contrast(self, query: Tensor, name: str, other: str, batch: Batch) -> Tensor:
        """Return the cross-entropy of each query against its key and the queue of keys, `[B]` (equations 1 and 6)."""
        queue = self.text_queue.rows if other == "text" else self.image_queue.rows
        same = (batch["caption"][:, None] == self.queue_caption) | (batch["image_id"][:, None] == self.queue_image)
        same = F.pad(same, (1, 0))  # the key comes first
        scale, keys = bounded_scale(self.log_scale), batch[f"{other}_key"]

        def scores(vectors: Tensor) -> Tensor:
            cosine = torch.cat([(vectors * keys).sum(dim=1, keepdim=True), vectors @ queue.T], dim=1)
            return (scale * cosine).masked_fill(same, float("-inf"))

        log_probability = scores(query).log_softmax(dim=1)
        soft = scores(batch[f"{name}_key"]).detach().softmax(dim=1)
        distilled = -(soft * log_probability.masked_fill(same, 0)).sum(dim=1)
        return torch.lerp(-log_probability[:, 0], distilled, self._distillation())

    def _distillation(self) -> float:
        """Return the current weight of soft targets: it rises over the first epoch."""
        steps = self.data.samples / self.data.batch_size
        return self.options.distillation * min(1.0, (self.clock.step - self.clock.schedule_start) / steps)

    def _match(self, batch: Batch) -> Tensor:
        """Return which of the three pairs of each sample match, int64 `[B, 3]`."""
        match = torch.zeros(len(batch["tokens"]), 3, dtype=torch.int64, device=batch["tokens"].device)
        match[:, 0] = 1
        return match

    def _real(self, batch: Batch) -> Tensor:
        """Return 1 for each of the three pairs, and 0 where none that does not match was left, `[B, 3]`."""
        return F.pad(batch["has_other"], (1, 0), value=1.0)
