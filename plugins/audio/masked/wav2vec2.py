"""wav2vec 2.0 (Baevski et al., 2020)."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, TaskOptions
from sslkit.audio.encoders.speech import SpeechEncoder
from sslkit.audio.masks import span_mask
from sslkit.audio.pictures import draw_labels, draw_masked, draw_spectrograms
from sslkit.nn import widen

_TEMPERATURE = 0.1


class Wav2Vec2(PretextTask):
    """Tell the quantized masked frame from others of the same recording (wav2vec 2.0; Baevski et al., 2020).

    On small data the codes collapse easily: `code_perplexity`, how many of them are used, is the figure to look at, and
    `hubert` is the safer choice.
    """

    class Options(TaskOptions):
        """Options of `wav2vec2`."""

        groups: int = Field(default=2, ge=1, le=64, description="Codebooks, of whose entries a frame has one each.")
        entries: int = Field(default=32, ge=2, description="Entries of a codebook (320 in the paper).")
        mask_ratio: float = Field(default=0.5, gt=0, lt=1, description="Share of masked frames (0.49 in the paper).")
        span: int = Field(default=5, ge=1, le=100, description="Frames in a masked span (10 in the paper).")
        negatives: int = Field(default=50, ge=1, description="Other masked frames of the recording (100 in the paper).")
        width: int = Field(default=64, ge=1, description="Width of the projection of frames and codes (256 in the paper).")
        diversity: float = Field(default=0.1, ge=0, description="Weight of the diversity of codes.")
        penalty: float = Field(default=10.0, ge=0, description="Weight of the mean square of the convolutions' output.")
        start_temperature: float = Field(default=2.0, gt=0, description="Temperature of the Gumbel softmax at first.")
        end_temperature: float = Field(default=0.5, gt=0, description="Temperature of the Gumbel softmax at the end.")

    options: Options
    encoder: SpeechEncoder
    modality: ClassVar = "audio"
    requires: ClassVar = ("frames",)
    masked: ClassVar = True
    couples_samples: ClassVar = True
    couples: ClassVar = ("probability", "recorded_count")
    encoder_inputs: ClassVar = ("audio",)
    visible_targets: ClassVar = ("mask", "recorded")
    defaults: ClassVar = {
        "optimizer": "adamw",
        "lr": 5e-4,
        "weight_decay": 0.01,
        "betas": "0.9,0.98",
        "warmup": 0.1,
        "batch_size": 64,
        "seconds": "recording",
    }
    paper: ClassVar = Paper(
        source="section 4.2 of the paper, BASE, and wav2vec2_base_librispeech.yaml of fairseq",
        settings={
            "seconds": 15.6,
            "sample_rate": 16_000,
            "encoder_option": {"width": "768", "depth": "12", "channels": "512"},
            "entries": 320,
            "mask_ratio": 0.49,
            "span": 10,
            "negatives": 100,
            "width": 256,
            "lr": 5e-4,
            "warmup": 0.08,
            "steps": 400_000,
        },
        unsupported=(
            "GroupNorm in the first convolution, over time",
            "a tenth of the gradient for the convolutions, and dropout of layers",
            "a Gumbel temperature that falls by a factor in each step (here on a line, over the run)",
        ),
    )
    preview_columns: ClassVar = ("recording", "masked", "codes")

    def build_head(self) -> nn.Module:
        """Build the projection of contexts."""
        return nn.Linear(self.encoder.width, self.options.width)

    def setup(self) -> None:
        """Build the quantizer and the vector that replaces masked frames."""
        options, channels = self.options, self.encoder.convolutions.channels
        self.quantizer = Quantizer(channels, options.groups, options.entries, options.width)
        self.fill = nn.Parameter(0.02 * torch.randn(self.encoder.width))
        self.norm = nn.LayerNorm(channels)

    def transform(self, batch: Batch) -> Batch:
        """Return sound `[B, T]`, the frames that are recorded and masked, bool `[B, N]`, and random values.

        `negatives` `[B, N, M]` are places of other masked frames of the recording, `noise` `[B, N, G, V]` is Gumbel's.
        """
        options, sound = self.options, batch["audio"][:, 0]
        recorded = self.encoder.recorded_frames(sound)
        mask = span_mask(recorded, options.mask_ratio, options.span)
        uniform = torch.rand(*recorded.shape, options.groups, options.entries, device=sound.device)
        return {
            "audio": sound,
            "recorded": recorded,
            "recorded_count": recorded.sum(dim=1),
            "mask": mask,
            "negatives": other_masked(mask, options.negatives),
            "noise": -(-uniform.clamp(1e-7, 1 - 1e-7).log()).log(),
        }

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors of contexts and of codes, `[B, N, D]`, the codes' numbers `[B, N, G]`, and their probabilities.

        The last are sums over recorded frames, `[B, G, V]`; `square` `[B]` is that of the convolutions' output.
        """
        frames = self.encoder.frames(batch["audio"])
        context = self.encoder.contexts(frames, batch["recorded"], batch["mask"], self.fill)[-1]
        noise = batch["noise"] if self.training else torch.zeros_like(batch["noise"])
        codes, numbers, probability = self.quantizer(self.norm(frames), noise, self._temperature())
        return {
            "context": F.normalize(widen(self.head(context)), dim=2),
            "code": F.normalize(codes, dim=2),
            "numbers": numbers,
            "probability": (probability * batch["recorded"][..., None, None]).sum(dim=1),
            "square": widen(frames).square().mean(dim=(1, 2)),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the contrastive loss (equation 3) summed over masked frames, the diversity loss (4), and the penalty."""
        nats = -self._scores(output, batch).log_softmax(dim=2)[..., 0]
        mean = output["probability"].sum(dim=0) / batch["recorded_count"].sum()  # [G, V]
        perplexity = torch.exp(-(mean * (mean + 1e-7).log()).sum(dim=1))
        return {
            "masked_nats": (nats * batch["mask"]).sum(),
            "diversity": self.options.diversity * (1 - perplexity.mean() / self.options.entries),
            "penalty": self.options.penalty * output["square"].mean(),
        }

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of masked frames."""
        return {"masked_nats": batch["mask"].sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often the frame's own code has the largest score, and how many codes a recording uses.

        Frames whose negatives all have their own code count as wrong.
        """
        scores, mask = self._scores(output, batch), batch["mask"]
        correct = (scores.argmax(dim=2) == 0) & (scores[..., 1:] > float("-inf")).any(dim=2) & mask
        counts = F.one_hot(output["numbers"], self.options.entries) * batch["recorded"][..., None, None]
        share = counts.sum(dim=1) / batch["recorded_count"][:, None, None]
        perplexity = torch.exp(-(share * (share + 1e-7).log()).sum(dim=2)).mean(dim=1)
        return {"accuracy": correct.sum(dim=1) / mask.sum(dim=1), "code_perplexity": perplexity}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the negatives."""
        return {"accuracy": 1 / (1 + self.options.negatives)}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return spectrograms, without and with masks, and, once trained, the codes of the first group."""
        sound = batch["audio"].float()
        columns = [draw_spectrograms(sound, self.encoder.sample_rate), draw_masked(sound, batch["mask"], self.encoder)]
        if output is not None:
            columns.append(draw_labels(output["numbers"][..., 0], batch["recorded"], sound.shape[1], self.encoder))
        return torch.stack(columns, dim=1)

    def _temperature(self) -> float:
        start, end = self.options.start_temperature, self.options.end_temperature
        return start + (end - start) * self.clock.progress

    def _scores(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return cosines / 0.1 of contexts with their own code and those of the negatives, `[B, N, 1 + M]`.

        Negatives that have the same codes are left out, as by the authors.
        """
        negatives, numbers = batch["negatives"], output["numbers"]
        similarity = output["context"] @ output["code"].transpose(1, 2) / _TEMPERATURE  # [B, N, N]
        positive = similarity.diagonal(dim1=1, dim2=2)[..., None]
        single = (numbers * self.options.entries ** torch.arange(numbers.shape[2], device=numbers.device)).sum(dim=2)
        same = (single[:, :, None] == single[:, None]).gather(2, negatives)
        return torch.cat([positive, similarity.gather(2, negatives).masked_fill(same, float("-inf"))], dim=2)


class Quantizer(nn.Module):
    """Choose an entry of each of several codebooks for a frame, by a Gumbel softmax (section 2)."""

    def __init__(self, channels: int, groups: int, entries: int, width: int) -> None:
        super().__init__()
        self.groups, self.entries = groups, entries
        self.choose = nn.Linear(channels, groups * entries)
        nn.init.normal_(self.choose.weight)  # as by the authors: with small weights all frames would begin with one code
        nn.init.zeros_(self.choose.bias)
        part = math.ceil(width / groups)
        self.codes = nn.Parameter(torch.rand(groups, entries, part))
        self.project = nn.Linear(groups * part, width)

    def forward(self, frames: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes `[B, N, width]` of frames `[B, N, channels]`, their numbers `[B, N, G]`, and probabilities.

        These are `[B, N, G, V]`. The codes are those of the largest noisy score, their gradient that of the softmax at the
        temperature.
        """
        with torch.autocast(frames.device.type, enabled=False):
            scores = self.choose(widen(frames)).unflatten(2, (self.groups, self.entries))
            soft = ((scores + noise) / temperature).softmax(dim=3)
            numbers = soft.argmax(dim=3)
            hard = F.one_hot(numbers, self.entries).to(soft.dtype) + soft - soft.detach()
            chosen = torch.einsum("bngv,gvd->bngd", hard, self.codes)
            return self.project(chosen.flatten(2)), numbers, scores.softmax(dim=3)


def other_masked(mask: Tensor, count: int) -> Tensor:
    """Return places of `count` random masked frames for each frame, int64 `[B, N, count]`; for a masked one never its own.

    A recording with a single masked frame has no other: its own place is returned.
    """
    number = mask.sum(dim=1)[:, None, None]
    places = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # the masked ones first, in order
    rank = (mask.cumsum(dim=1) - 1).clamp(min=0)[..., None]
    offset = 1 + (torch.rand(*mask.shape, count, device=mask.device) * (number - 1)).long()
    chosen = (rank + offset) % number
    return places.gather(1, chosen.flatten(1)).view_as(chosen)
