"""ViLT (Kim et al., 2021)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sslkit import Batch, Paper, PretextTask, SslkitError, TaskOptions
from sslkit.image.transforms import random_resized_crop
from sslkit.image.views import CropScale
from sslkit.image_text.matcher import PART, JointMatcher
from sslkit.image_text.task import CaptionHash, draw_partners, mask_captions, masked_accuracy, masked_nats
from sslkit.pictures import add_frame, side_by_side
from sslkit.text.masking import starts_word
from sslkit.text.tokenizer import Tokenizer


class ViLT(PretextTask):
    """Read patches and words in one transformer: does the caption match, and which words are hidden (ViLT; Kim et al., 2021).

    Half of the images are replaced by others of the batch. Images are not flipped, because captions distinguish left from
    right.
    """

    class Options(TaskOptions):
        """Options of `vilt`."""

        mask_ratio: float = Field(default=0.15, gt=0, lt=1, description="Share of a caption's words that are hidden.")
        crop_scale: CropScale = 0.6

    options: Options
    head: JointMatcher
    starts_word: Tensor
    modality: ClassVar = "image_text"
    encodes: ClassVar = "image"
    requires: ClassVar = ("blocks",)
    masked: ClassVar = True
    defaults: ClassVar = {"encoder": "vit_micro", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 64, "clip": 1.0}
    paper: ClassVar = Paper(
        source="section 4.2 of the paper, config.py of the authors",
        settings={
            "size": 384,
            "encoder": "vit_base_patch32_384",
            "batch_size": 4096,
            "steps": 100_000,
            "lr": 1e-4,
            "weight_decay": 0.01,
            "warmup": 0.1,
            "context": 40,
            "crop_scale": 1.0,
        },
        unsupported=(
            "a transformer that starts from one trained on ImageNet (--init does)",
            "BERT's tokenizer, and word vectors that start from BERT's",
            "images of any proportions, and a sample of their patches",
            "word-patch transport",
            "a rate of its own for the heads",
            "a rate that falls linearly (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("image", "match recognized")

    def build_head(self) -> JointMatcher:
        """Build word vectors and heads."""
        details = self.data.details
        if details["text_checkpoint"] is not None:
            raise SslkitError("vilt has no text tower that could start from it", "leave it out", flag="init_part")
        tokenizer = Tokenizer.from_bytes(details["tokenizer"])
        matcher = JointMatcher(self.encoder.width, tokenizer.size, details["length"], len(details["tokenizer"]))
        matcher.keep_tokenizer(details["tokenizer"])
        return matcher

    def setup(self) -> None:
        """Find out which tokens begin a word."""
        tokenizer = Tokenizer.from_bytes(self.data.details["tokenizer"])
        self.register_buffer("starts_word", starts_word(tokenizer), persistent=False)
        self.caption_hash = CaptionHash(self.data.details["length"])

    def transform(self, batch: Batch) -> Batch:
        """Return crops and captions, `image` `[B, C, S, S]` and `caption` `[B, T]`; images of which half are another's,
        `other_image`, `match` `[B]`: 1 for those that are not, and `has_other` `[B]`: 0 where no other image was left; and what
        `mask_captions` returns, `tokens`, `places`, `target` and `weight`.
        """
        tokens, scale = batch["tokens"], (self.options.crop_scale, 1.0)
        image = random_resized_crop(batch["canvas"], self.data.size, scale, aspect=batch["aspect"])
        partner = draw_partners({"caption": self.caption_hash(tokens), "image_id": batch["image_id"]})
        match = torch.rand(len(tokens), device=tokens.device) < 0.5
        has_other = partner != torch.arange(len(partner), device=partner.device)
        masked = mask_captions(tokens, self.starts_word, self.options.mask_ratio, "word", self.head.first_special)
        other_image = image.where(match[:, None, None, None], image[partner])
        pairs = {"caption": tokens, "other_image": other_image, "match": match.long(), "has_other": has_other.float()}
        return {"image": image, **pairs, **masked}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits of a match `[B, 2]` and of hidden tokens `[B, K, ids]`, and the patches `places` `[B, M, width]`."""
        places = self.head.encode_image(self.encoder, torch.cat([batch["other_image"], batch["image"]]))
        both = torch.cat([batch["caption"], batch["tokens"]])
        matched, masked = self.head.encode_pair(self.encoder, None, places, both).chunk(2)
        return {
            "match": self.head.match_logits(matched, batch["caption"]),
            "masked": self.head.predict_words(masked, batch["places"], None),
            "places": places.chunk(2)[1],
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sums of the cross-entropies of matches and of hidden tokens, which `counts` divides."""
        match = F.cross_entropy(output["match"], batch["match"], reduction="none") * batch["has_other"]
        return {"match": match.sum(), "masked_nats": masked_nats(output["masked"], batch).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of pairs that may match or not, and of hidden tokens."""
        return {"match": batch["has_other"].sum(), "masked_nats": batch["weight"].sum()}

    @torch.no_grad()
    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often matches and hidden tokens are recognized, and `image_gain`: by how many nats a hidden token is
        likelier with its image than with another one of the batch.
        """
        matched = (output["match"].argmax(dim=1) == batch["match"]).float().where(batch["has_other"] > 0, 1 / 2)
        states = self.head.encode_pair(self.encoder, None, output["places"].roll(1, 0), batch["tokens"])
        other = self.head.predict_words(states, batch["places"], None)
        gain = masked_nats(other.float(), batch) - masked_nats(output["masked"], batch)
        sizes = batch["weight"].sum(dim=1).clamp(min=1)
        return {
            "match_accuracy": matched,
            "accuracy": masked_accuracy(output["masked"], batch),
            "image_gain": gain.sum(dim=1) / sizes,
        }

    def chance(self) -> dict[str, float]:
        """Return how often a guess recognizes a match, and what a caption gains from a random image."""
        return {"match_accuracy": 1 / 2, "image_gain": 0.0}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return images, half of them others'; once trained, framed green if it was recognized whether they match, else red."""
        image: Tensor = batch["other_image"]
        if output is None:
            return image[:, None]
        return side_by_side(image, add_frame(image, output["match"].argmax(dim=1) == batch["match"]))

    def exports(self) -> dict[str, Any]:
        """Return the encoder, and the matcher for `sslkit pairs`."""
        return {"encoder": self.encoder, PART: self.head}

    def metadata(self) -> dict[str, Any]:
        """Return what the matcher is built with."""
        return {PART: self.head.describe()}
