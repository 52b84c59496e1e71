"""CPC on audio (van den Oord et al., 2018; Rivière et al., 2020)."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError, TaskOptions
from sslkit.audio.encoders.cpc_micro import CausalEncoder
from sslkit.audio.pictures import draw_spectrograms
from sslkit.pictures import heat_map


class CPCAudio(PretextTask):
    """Predict the frames to come from a summary of those before, among other frames (CPC; van den Oord et al., 2018).

    With negatives of the same window the features have to describe the speech; those of other recordings are given away by
    the speaker alone.
    """

    class Options(TaskOptions):
        """Options of `cpc_audio`."""

        steps_ahead: int = Field(default=6, ge=1, description="Frames that are predicted ahead (12 in the paper).")
        negatives: Literal["window", "recordings"] = Field(
            default="window", description="Frames to tell apart: of the same window, or also of another recording's."
        )

    options: Options
    encoder: CausalEncoder
    head: nn.ModuleList
    modality: ClassVar = "audio"
    requires: ClassVar = ("causal",)
    encoder_inputs: ClassVar = ("audio",)
    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 1e-4, "batch_size": 64, "seconds": "recording"}
    paper: ClassVar = Paper(
        source="section 3.1 of the paper, and CPC_audio of Rivière et al., 2020",
        settings={
            "seconds": 1.28,
            "sample_rate": 16_000,
            "encoder_option": {"width": "256"},
            "steps_ahead": 12,
            "negatives": "recordings",
            "lr": 2e-4,
            "weight_decay": 0.0,
            "batch_size": 64,
        },
        unsupported=("128 negatives of the same speaker", "a transformer for each step ahead, and an LSTM"),
    )
    preview_columns: ClassVar = ("recording", "1 ahead", "last ahead")

    def build_head(self) -> nn.Module:
        """Build a linear predictor for each step ahead."""
        width = self.encoder.width
        return nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(self.options.steps_ahead))

    def setup(self) -> None:
        """Raise SslkitError if a window has too few frames to predict one."""
        samples = round(self.data.size * self.encoder.sample_rate / 1000)
        frames, ahead = self.encoder.convolutions.count(samples), self.options.steps_ahead
        if frames < ahead + 2:
            raise SslkitError(
                f"{ahead} is too many for windows of {frames} frames",
                "use fewer, or longer --seconds",
                flag="steps_ahead",
            )

    def transform(self, batch: Batch) -> Batch:
        """Return sound `[B, T]`, the frames that are `recorded`, bool `[B, N]`, and of another recording `other`, too."""
        sound = batch["audio"][:, 0]
        result = {"audio": sound, "recorded": self.encoder.recorded_frames(sound)}
        if self.options.negatives == "recordings":
            result |= {"other": sound.roll(1, dims=0), "other_recorded": result["recorded"].roll(1, dims=0)}
        return result

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return `frames` `[B, N, D]`, negatives of another recording after them, and `predictions` `[B, K, N, D]`.

        That of step k at frame n is about frame n + k.
        """
        frames = self.encoder.frames(batch["audio"])
        context = self.encoder.contexts(frames, batch["recorded"])[-1]
        predictions = torch.stack([predictor(context) for predictor in self.head], dim=1)
        if "other" in batch:
            frames = torch.cat([frames, self.encoder.frames(batch["other"])], dim=1)
        return {"frames": frames, "predictions": predictions}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of InfoNCE over frames and steps ahead (equation 4), which `counts` divides."""
        total = [
            (F.cross_entropy(scores.transpose(1, 2), target, reduction="none") * valid).sum()
            for scores, target, valid in self._steps(output, batch)
        ]
        return {"nats": torch.stack(total).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of predictions about recorded frames."""
        recorded = batch["recorded"]
        return {"nats": torch.stack([recorded[:, ahead:].sum() for ahead in self._range()]).sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often the frame to come has the largest score: on average, one ahead, and furthest ahead."""
        accuracies = []
        for scores, target, valid in self._steps(output, batch):
            correct = (scores.argmax(dim=2) == target) & valid
            accuracies.append(correct.sum(dim=1) / valid.sum(dim=1).clamp(min=1))
        mean = torch.stack(accuracies).mean(dim=0)
        return {"accuracy": mean, "first_accuracy": accuracies[0], "last_accuracy": accuracies[-1]}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return spectrograms, and, once trained, the probabilities of frames (across) at each frame (down)."""
        columns = [draw_spectrograms(batch["audio"].float(), self.encoder.sample_rate)]
        if output is not None:
            steps = list(self._steps(output, batch))
            for scores, _, _ in (steps[0], steps[-1]):
                probabilities = scores[:, :, : batch["recorded"].shape[1]].softmax(dim=2)
                columns.append(heat_map(F.interpolate(probabilities[:, None], size=columns[0].shape[2:]))[:, 0])
        return torch.stack(columns, dim=1)

    def _range(self) -> range:
        return range(1, self.options.steps_ahead + 1)

    def _steps(self, output: dict[str, Tensor], batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield for each step ahead scores `[B, N - k, frames]`, the frames to come, int64, and which of them are recorded."""
        frames, recorded = output["frames"], batch["recorded"]
        candidates = torch.cat([recorded, batch["other_recorded"]], dim=1) if "other" in batch else recorded
        for ahead in self._range():
            scores = output["predictions"][:, ahead - 1, :-ahead] @ frames.transpose(1, 2)
            valid, target = recorded[:, ahead:], torch.arange(ahead, recorded.shape[1], device=frames.device)
            # A frame that is not recorded may only be the target, whose loss is not counted then.
            allowed = candidates[:, None] | (torch.arange(frames.shape[1], device=frames.device) == target[:, None])
            yield scores.masked_fill(~allowed, float("-inf")), target.expand_as(valid), valid
