"""`sslkit cloze`: how often a masked language model names the word that is missing in a sentence."""

import time
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Metric, Result, Role, Row, TestData
from sslkit.data.tables import read_lines
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import CHECKPOINT, RANDOM, weights_hash
from sslkit.evaluation.notes import count
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, interval_of_mean
from sslkit.text.answers import MASKED, Gap, encode_answer, encode_gap, score_pieces, single_piece
from sslkit.text.language_model import LanguageModel, randomize, read_language_model
from sslkit.text.specs import ClozeSpec

_NEAR = 10  # ranks of the second metric


class Cloze(Evaluation):
    """Find the missing word of sentences with a masked language model."""

    verb = "cloze"
    Options = ClozeSpec
    labels = "none"
    requires = ("tokens",)
    modalities = ("text",)
    protocols = (
        Protocol(
            "cloze/pieces-v1",
            "rank of the missing word among all pieces of the tokenizer (Petroni et al., 2019)",
            {"candidates": []},
            deterministic=True,
        ),
    )

    def run(self, spec: ClozeSpec) -> Result:
        """Rank the answers of files with a sentence, a tab and the word for its `[MASK]` in each line.

        Lines whose answer is not one piece, or whose sentence is longer than the context, are skipped and counted. Raises
        SslkitError for malformed lines and for a checkpoint that predicts no masked tokens.
        """
        started_at = time.monotonic()
        if not spec.test:
            raise SslkitError("missing", "name a file: a sentence with [MASK], a tab and the word in each line", flag="test")
        model = read_language_model(spec.ckpt, spec.part, "masked").to(choose_device(spec.device)[0])
        models = [(CHECKPOINT, model)] + ([(RANDOM, randomize(model, spec.seed))] if spec.baselines else [])
        candidates = [single_piece(model.tokenizer, name, "candidates") for name in spec.candidates]
        weights, rows, tests, notes = weights_hash(model.encoder), list[Row](), list[TestData](), list[str]()
        for file in spec.test:
            gaps, answers, skipped = _read(Path(file), model, candidates)
            outcomes = CheckpointOutcomes[Answers](compare_answers)
            for name, each in models:
                ranks = _ranks(score_pieces(each, gaps), answers, candidates)
                correct = Answers(torch.arange(len(ranks)).numpy(), (ranks == 1).double())
                role: Role = "checkpoint" if name == CHECKPOINT else "random"
                comparisons = outcomes.compare(role, 0, None, correct)
                hashed = weights_hash(each.encoder)
                row = Row(name, _metrics(ranks), test=file, comparisons=comparisons, weights=hashed, role=role)
                rows.append(row)
            content = blake2b(Path(file).read_bytes(), digest_size=8).hexdigest()
            tests.append(TestData(file, content, len(gaps)))
            left_out = f", {count(skipped, 'line')} skipped: too long, or the answer is not one piece or no candidate"
            notes.append(f"{file}: {count(len(gaps), 'sentence')}{left_out if skipped else ''}.")
        rows = adjust_comparisons(rows)
        result = Result(
            verb=self.verb,
            protocol=None if candidates else self.protocols[0].id,
            settings={"candidates": spec.candidates, "pieces": len(candidates) or model.tokenizer.first_special},
            checkpoint=str(spec.ckpt),
            weights=weights,
            data=Data(tests=tests),
            rows=rows,
            notes=notes,
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, model.checkpoint, spec)
        append_result(model.checkpoint.path.parent, result.to_json())
        return result


def cloze(spec: ClozeSpec) -> Result:
    """Find the missing word of sentences, as `sslkit cloze` does."""
    return Cloze().run(spec)


def _read(file: Path, model: LanguageModel, candidates: list[int]) -> tuple[list[Gap], Tensor, int]:
    """Return sentences, the pieces that are missing in them `[N]`, and how many lines were skipped."""
    gaps, answers, skipped = list[Gap](), list[int](), 0
    tokenizer, room = model.tokenizer, model.checkpoint.size - 3
    for number, line in read_lines(file, "test"):
        sentence, _, answer = line.rpartition("\t")
        if sentence.count(MASKED) != 1 or not answer.strip():
            expected = f"expected a sentence with one {MASKED}, a tab and the word"
            raise SslkitError(f"line {number} of {file} is {line!r}", expected, flag="test")
        before, _, after = sentence.partition(MASKED)
        gap, ids = encode_gap(tokenizer, before, after), encode_answer(tokenizer, answer.strip())
        fits = len(ids) == 1 and ids[0] < tokenizer.first_special and len(gap.before) + len(gap.after) <= room
        if fits and (not candidates or int(ids[0]) in candidates):
            gaps.append(gap)
            answers.append(int(ids[0]))
        else:
            skipped += 1
    if not gaps:
        raise SslkitError(f"no line of {file} can be answered by one piece", "see `sslkit fill-mask --candidates`", flag="test")
    return gaps, torch.tensor(answers), skipped


def _ranks(scores: Tensor, answers: Tensor, candidates: list[int]) -> Tensor:
    """Return the rank of each answer `[N]`, 1 for the likeliest; ties count against the model."""
    if candidates:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, candidates] = scores[:, candidates]
        scores = kept
    return (scores >= scores.gather(1, answers[:, None])).sum(dim=1)


def _metrics(ranks: Tensor) -> list[Metric]:
    """Return accuracy with its interval, accuracy among the first ten, and the mean reciprocal rank."""
    first, near = (ranks == 1).double(), (ranks <= _NEAR).double()
    low, high, method = interval_of_mean(first)
    return [
        Metric("accuracy", float(first.mean()), low, high, method, n=len(ranks), unit_of_n="sentences"),
        Metric(f"among {_NEAR}", float(near.mean()), n=len(ranks), unit_of_n="sentences"),
        Metric("mean reciprocal rank", float((1 / ranks.double()).mean()), n=len(ranks), unit_of_n="sentences", unit="other"),
    ]
