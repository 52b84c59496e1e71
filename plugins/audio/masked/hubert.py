"""HuBERT (Hsu et al., 2021)."""

from typing import ClassVar

from sslkit import Paper
from sslkit.audio.frame_clusters import PAPER_SETTINGS, UNSUPPORTED, FrameClusterOptions, FrameClusterTask


class HuBERT(FrameClusterTask):
    """Predict the clusters of masked frames: of their MFCC, then of the features learned so far (HuBERT; Hsu et al., 2021).

    Labels are those of the window at hand, unmasked: the nearest centers, which are fitted when an iteration begins.
    """

    class Options(FrameClusterOptions):
        """Options of `hubert`."""

    options: Options
    paper: ClassVar = Paper(
        source="section 4 of the paper, BASE, and hubert_base_librispeech.yaml of fairseq",
        settings={**PAPER_SETTINGS, "steps": 650_000},
        unsupported=UNSUPPORTED,
    )
