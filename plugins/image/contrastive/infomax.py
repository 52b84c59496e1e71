"""Deep InfoMax (Hjelm et al., 2019)."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import ViewOptions, Views
from sslkit.nn import ProjectorOptions, jensen_shannon, mlp, with_frozen_weights


class InfoMax(PretextTask):
    """Maximize mutual information of local and global features (DIM; Hjelm et al., 2019).

    The vector of an image should share information with every position of its feature map, and none with positions of
    other images. A critic that distinguishes codes from uniform noise spreads them out.
    """

    class Options(ProjectorOptions, ViewOptions):
        """Options of `infomax`."""

        estimator: Literal["jensen_shannon", "info_nce"] = Field(
            default="jensen_shannon", description="Lower bound on mutual information to maximize."
        )
        local: float = Field(default=1.0, gt=0, description="Weight of the local term, positions against vectors (β).")
        prior: float = Field(
            default=0.1, ge=0, description="Weight of the adversarial term for a uniform code (γ); 0: no critic."
        )
        temperature: float = Field(default=0.1, gt=0, description="Temperature of `info_nce`.")
        hidden: int = Field(default=256, ge=1, description="Hidden width of the projectors (2,048 in the paper).")
        width: int = Field(default=128, ge=1, description="Output width of the projectors (2,048 in the paper).")
        code: int = Field(default=64, ge=1, description="Width of the code that should be uniform.")

    options: Options
    head: nn.ModuleDict
    requires: ClassVar = ("feature_map",)
    couples_samples: ClassVar = True
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    paper: ClassVar = Paper(
        source="the appendix of the paper, CIFAR-10",
        settings={
            "size": 32,
            "epochs": 1000,
            "lr": 1e-4,
            "weight_decay": 0.0,
            "hidden": 2048,
            "width": 2048,
        },
        unsupported=("a convolutional encoder of three layers, without augmentation",),
    )

    def build_head(self) -> nn.Module:
        """Build a projector for vectors and one for positions."""
        options, width = self.options, self.encoder.width
        return nn.ModuleDict({name: mlp([width, options.hidden, options.width], options.norm) for name in ("vector", "place")})

    def setup(self) -> None:
        """Build the layer of the code that should be uniform, and its critic."""
        options = self.options
        self.views = Views(options, self.data)
        if options.prior:
            self.code = nn.Linear(self.encoder.width, options.code)
            self.critic = mlp([options.code, options.hidden, options.hidden, 1], "none")

    def param_groups(self) -> list[dict[str, Any]]:
        """Put the critic into a group of its own, whose gradient is clipped separately."""
        return [{"params": self.critic.parameters()}] if self.options.prior else []

    def transform(self, batch: Batch) -> Batch:
        """Return a view of each image, `[B, C, S, S]`, and noise, `uniform` `[B, K]`."""
        image = self.views(batch)
        return {"image": image, "uniform": torch.rand(len(image), self.options.code, device=image.device)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return vectors `[B, D]` and positions `[B, N, D]`, and the critic's scores of codes and noise, `[B]` each."""
        features = self.encoder.feature_map(batch["image"]).flatten(2).transpose(1, 2)  # [B, N, width]
        vector = features.mean(dim=1)
        output = {
            "vector": self.head["vector"](vector),
            "place": self.head["place"](features.flatten(0, 1)).unflatten(0, features.shape[:2]),
        }
        if self.options.prior:
            code = self.code(vector).sigmoid()
            output["frozen_critic"] = with_frozen_weights(self.critic)(code)[:, 0]
            output["code"] = self.critic(code.detach())[:, 0]
            output["uniform"] = self.critic(batch["uniform"])[:, 0]
        return output

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the negative bound on local mutual information, and both adversarial terms (equations 5, 7 and 8)."""
        terms = {"local": self.options.local * self._local(output)}
        if self.options.prior:
            terms["prior"] = self.options.prior * F.softplus(-output["frozen_critic"]).mean()
            terms["critic"] = F.softplus(output["code"]).mean() + F.softplus(-output["uniform"]).mean()
        return terms

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often a position scores highest with the vector of its own image."""
        scores, _ = self._scores(output)
        target = torch.arange(len(scores), device=scores.device)
        return {"accuracy": (scores.argmax(dim=2) == target[:, None]).float().mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the images of a batch."""
        return {"accuracy": 1 / self.data.batch_size}

    def _scores(self, output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores of positions with vectors, `[B, N, B]`, and which pairs are of the same image."""
        vector, place = output["vector"], output["place"]
        if self.options.estimator == "info_nce":
            vector, place = F.normalize(vector, dim=1), F.normalize(place, dim=2)
        scores = place @ vector.T
        same = torch.eye(len(vector), dtype=torch.bool, device=vector.device)[:, None].expand_as(scores)
        return scores, same

    def _local(self, output: dict[str, Tensor]) -> Tensor:
        scores, same = self._scores(output)
        if self.options.estimator == "jensen_shannon":
            return jensen_shannon(scores, same)
        # Each position is classified among the vectors of all images.
        target = torch.arange(len(scores), device=scores.device)[:, None].expand(scores.shape[:2])
        return F.cross_entropy(scores.flatten(0, 1) / self.options.temperature, target.flatten())
