"""Odd-one-out networks (Fernando et al., 2017)."""

from itertools import permutations
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError
from sslkit.image.decoders import flat_map_head
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import Norm, mlp
from sslkit.pictures import add_frame, side_by_side, tile_grid
from sslkit.video.transforms import crop_clip


class OddOneOut(PretextTask):
    """Find the one of several sequences of a clip whose frames are shuffled (O3N; Fernando et al., 2017).

    The sequences are taken from one window at any places ("constrained consecutive", section 4.1). Each frame is encoded on its
    own, so that the encoder is one of images; the paper encodes differences of frames. A sequence that runs backwards is no
    odd one: the direction of time is not asked for.
    """

    class Options(CropOptions):
        """Options of `odd_one_out`."""

        sequences: int = Field(default=6, ge=3, le=16, description="Sequences, one of which is shuffled (6 in the paper).")
        sequence_frames: int = Field(default=4, ge=3, le=6, description="Frames of a sequence (6 in the paper).")
        hidden: int = Field(default=128, ge=1, description="Width of a frame's and of a sequence's vector.")
        difference: float = Field(
            default=1e-4,
            ge=0,
            description="Mean squared difference of shuffled and ordered frames below which a clip does not count.",
        )
        crop_scale: CropScale = 0.6
        norm: Norm = Field(default="layer", description="Normalization in the head.")

    options: Options
    head: nn.ModuleDict
    orders: Tensor
    modality: ClassVar = "video"
    encodes: ClassVar = "image"  # frames
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"lr": 3e-3, "weight_decay": 1e-4, "batch_size": 32}
    paper: ClassVar = Paper(
        source="section 5 of the paper",
        settings={"size": 224, "optimizer": "sgd", "sequences": 6, "sequence_frames": 6},
        unsupported=(
            "AlexNet on sums or stacks of differences of frames, or on dynamic images",
            "fusion by concatenation",
        ),
    )
    preview_columns: ClassVar = ("sequences", "odd one")

    def build_head(self) -> nn.Module:
        """Build what describes a frame's feature map, a sequence of frames, and a sequence among the others."""
        hidden, norm = self.options.hidden, self.options.norm
        frame = flat_map_head(self.encoder, self.data, hidden)
        sequence = mlp([self.options.sequence_frames * hidden, hidden, hidden], norm)
        return nn.ModuleDict({"frame": frame, "sequence": sequence, "score": mlp([2 * hidden, hidden, 1], norm)})

    def setup(self) -> None:
        """List the shuffled orders; raise SslkitError for windows that are hardly longer than a sequence."""
        frames, length = self.data.details["frames"], self.options.sequence_frames
        if frames < length + 2:
            problem = f"windows have {frames} frames, and sequences {length}"
            raise SslkitError(problem, f"use at most {frames - 2}, or longer clips", flag="sequence_frames")
        self.register_buffer("orders", shuffled_orders(length), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return frames with one crop, `[B, T, C, S, S]`, those of each sequence, `[B, E, n]`, and which is `odd` `[B]`.

        `valid` `[B]` tells where shuffling changed anything, `most_changed` `[B]` in which sequence frames differ most.
        """
        clip, options = batch["video"], self.options
        count, device = len(clip), clip.device
        image = crop_clip(clip, self.data.size, options.crop_scale, batch["aspect"], flipped=0.5)
        starts = torch.randint(clip.shape[1] - options.sequence_frames + 1, (count, options.sequences, 1), device=device)
        frames = starts + torch.arange(options.sequence_frames, device=device)
        odd, sample = torch.randint(options.sequences, (count,), device=device), torch.arange(count, device=device)
        ordered = frames[sample, odd]
        shuffled = ordered.gather(1, self.orders[torch.randint(len(self.orders), (count,), device=device)])
        place = (sample[:, None], odd[:, None], torch.arange(options.sequence_frames, device=device))
        frames = frames.index_put(place, shuffled)
        pixels = image.flatten(2)
        difference = (pixels[sample[:, None], shuffled] - pixels[sample[:, None], ordered]).square().mean(dim=(1, 2))
        apart = torch.cdist(pixels, pixels)  # [B, T, T]
        changes = apart[sample[:, None, None], frames[..., :-1], frames[..., 1:]].sum(dim=2)
        return {
            "image": image,
            "frames": frames,
            "odd": odd,
            "valid": difference >= options.difference,
            "most_changed": changes.argmax(dim=1),
        }

    def predict(self, batch: Batch) -> Tensor:
        """Return a score for each sequence, `[B, E]`: of its frames in their order, and of the mean of the other sequences."""
        vectors = self.each_view(lambda image: self.head["frame"](self.encoder.feature_map(image)), batch["image"])
        frames = batch["frames"]
        index = frames.flatten(1)[..., None].expand(-1, -1, vectors.shape[2])
        sequence_frames = vectors.gather(1, index).unflatten(1, frames.shape[1:]).flatten(2)
        sequences = self.head["sequence"](sequence_frames.flatten(0, 1)).unflatten(0, sequence_frames.shape[:2])
        others = (sequences.sum(dim=1, keepdim=True) - sequences) / (sequences.shape[1] - 1)
        scores: Tensor = self.head["score"](torch.cat([sequences, others], dim=2).flatten(0, 1)).view(frames.shape[:2])
        return scores

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the odd one, summed over the clips that count."""
        return {"odd_one": (F.cross_entropy(output, batch["odd"], reduction="none") * batch["valid"]).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of clips that count."""
        return {"odd_one": batch["valid"].sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy, and that of choosing the sequence whose frames differ most; chance if a clip does not count."""
        chance = 1 / self.options.sequences
        return {
            "accuracy": (output.argmax(dim=1) == batch["odd"]).float().where(batch["valid"], chance),
            "difference_accuracy": (batch["most_changed"] == batch["odd"]).float().where(batch["valid"], chance),
        }

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess."""
        return {"accuracy": 1 / self.options.sequences}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return all sequences as rows, and the odd one; once trained the chosen one, framed green if right, else red."""
        image, frames = batch["image"], batch["frames"]
        sample = torch.arange(len(image), device=image.device)
        rows = image[sample[:, None], frames.flatten(1)]
        chosen = batch["odd"] if output is None else output.argmax(dim=1)
        odd = tile_grid(image[sample[:, None], frames[sample, chosen]], columns=frames.shape[2])
        if output is not None:
            odd = add_frame(odd, chosen == batch["odd"], width=2)
        return side_by_side(tile_grid(rows, columns=frames.shape[2]), odd)


def shuffled_orders(length: int) -> Tensor:
    """Return the orders of so many frames that are neither as they were nor backwards, int64 `[N, length]`."""
    places = tuple(range(length))
    return torch.tensor([order for order in permutations(places) if order not in (places, places[::-1])])
