"""The verbs of text that write text rather than numbers. Nothing here imports torch."""

from typing import Any, ClassVar

import sslkit
from sslkit.contract.command import Command
from sslkit.text.specs import FillMaskSpec, GenerateSpec


class Generate(Command):
    """Generate text with a language model, and tell how much of it is copied from the training text."""

    Options: ClassVar = GenerateSpec
    panel: ClassVar = "Use"
    argument: ClassVar = "prompt"
    extended: ClassVar = True

    def run(self, spec: GenerateSpec) -> Any:
        """Generate."""
        return sslkit.generate(spec)

    def lines(self, result: Any) -> list[str]:
        """Return the texts, and what they repeat and copy."""
        lines = [line for text in result.texts for line in (text, "")]
        runs = ", ".join(f"{share:.0%} of {n}" for n, share in result.distinct.items())
        lines.append(f"different among runs of n words: {runs}")
        if result.copied is not None:
            copied = ", ".join(f"{share:.0%} of {n}" for n, share in result.copied.items())
            lines.append(f"copied from the training text, of runs of n words: {copied}")
        return lines


class FillMask(Command):
    """Find the likeliest pieces for a masked place in a text."""

    Options: ClassVar = FillMaskSpec
    panel: ClassVar = "Use"
    argument: ClassVar = "text"
    extended: ClassVar = True

    def run(self, spec: FillMaskSpec) -> Any:
        """Find them."""
        return sslkit.fill_mask(spec)

    def lines(self, result: Any) -> list[str]:
        """Return a line for each answer: its probability and the text with it."""
        return [f"{answer.probability:7.2%}  {answer.piece:<16}  {answer.text}" for answer in result.answers]
