"""HuBERT (Hsu et al., 2021)."""

from typing import ClassVar

from sslkit import Paper
from sslkit.audio.frame_clusters import FrameClusterOptions, FrameClusterTask


class HuBERT(FrameClusterTask):
    """Predict the clusters of masked frames: of their MFCC, then of the features learned so far (HuBERT; Hsu et al., 2021).

    Labels are those of the window at hand, unmasked: the nearest centers, which are fitted when an iteration begins.
    """

    class Options(FrameClusterOptions):
        """Options of `hubert`."""

    options: Options
    paper: ClassVar = Paper(
        source="section 4 of the paper, BASE, and hubert_base_librispeech.yaml of fairseq",
        settings={
            "seconds": 15.6,
            "sample_rate": 16_000,
            "encoder_option": {"width": "768", "depth": "12", "channels": "512"},
            "clusters": 100,
            "feature_clusters": 500,
            "mask_ratio": 0.55,
            "span": 10,
            "width": 256,
            "lr": 5e-4,
            "warmup": 0.08,
            "clip": 10.0,
            "steps": 650_000,
        },
        unsupported=(
            "GroupNorm in the first convolution, over time",
            "a tenth of the gradient for the convolutions, and dropout of layers",
            "a rate that falls linearly (here a cosine)",
        ),
    )
