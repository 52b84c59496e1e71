"""Files of labeled words, and the entities that labels mark."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

from sslkit import SslkitError
from sslkit.text.labeled_words import find_entities, find_labeled_words, read_labeled_words

CONLLU = (
    "# text = Don't go\n1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_\n"
    "2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_\n3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_\n3.1\tx\tx\tNOUN\tNN\t_\t_\t_\t_\t_\n\n"
    "1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_\n"
)
TAGS = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), max_size=8)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_conllu_without_ranges_and_empty_nodes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.conllu", CONLLU)
    data = read_labeled_words(file, None)
    assert data.sentences == [(["Do", "n't", "go"], ["AUX", "PART", "VERB"]), (["Yes"], ["INTJ"])]
    assert data.labels == ("AUX", "INTJ", "PART", "VERB") and data.words == 4 and not data.entities
    assert read_labeled_words(file, "xpos").sentences[0][1] == ["VB", "RB", "VB"]
    assert data.fingerprint() != read_labeled_words(file, "xpos").fingerprint()


def test_words_of_conll_contain_anything_but_tabs(tmp_path: Path) -> None:
    file = write(tmp_path / "a.conll", "-DOCSTART- O\n\na b\tB-x\nc\tO\n\n\n\nd\tO\n")
    assert read_labeled_words(file, None).sentences == [(["a b", "c"], ["B-x", "O"]), (["d"], ["O"])]
    blanks = write(tmp_path / "b.conll", "EU NNP B-NP I-ORG\nrejects VBZ B-VP O\n")
    assert read_labeled_words(blanks, None).sentences == [(["EU", "rejects"], ["B-ORG", "O"])]


def test_iob1_becomes_iob2(tmp_path: Path) -> None:
    lines = ["a I-X", "b I-X", "c B-X", "d I-X", "e I-Y", "f O", "g I-X"]
    data = read_labeled_words(write(tmp_path / "a.conll", "\n".join(lines)), None)
    assert data.sentences[0][1] == ["B-X", "I-X", "B-X", "I-X", "B-Y", "O", "B-X"] and data.entities
    mixed = write(tmp_path / "b.conll", "a I-X\nb O\nc B-X\n")
    with pytest.raises(SslkitError, match="begins 1 entities with B- and 1 with I-"):
        read_labeled_words(mixed, None)


@given(tags=TAGS)
def test_entities_are_those_of_conlleval(tags: list[str]) -> None:
    assert find_entities(tags) == [(kind, start, stop + 1) for kind, start, stop in get_entities(tags)]
    strict = Entities([tags], IOB2).entities[0]
    if all(before[2:] == tag[2:] or tag[0] != "I" for before, tag in pairwise(["O", *tags])):
        assert find_entities(tags) == [(entity.tag, entity.start, entity.end) for entity in strict]


@pytest.mark.parametrize(
    ("name", "content", "label", "message"),
    [
        ("a.conllu", "1\tDo\tdo\n", None, r"line 1 of .*a.conllu has 3 columns \(CoNLL-U has 10"),
        ("a.conllu", CONLLU, "pos", "CoNLL-U has no labels called pos"),
        ("a.conllu", "# nothing\n", None, "has no sentences"),
        ("a.conll", "a O\nb\n", None, "line 2 of .*a.conll is 'b'"),
        ("a.conll", "a O\n", "upos", "--label: .* has one label per word"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: str, label: str | None, message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        read_labeled_words(write(tmp_path / name, content), label)


def test_parts(tmp_path: Path) -> None:
    for name, message in (("none.conllu", "does not exist"), ("a.txt", "not a file of labeled words"), (".", "has no train")):
        write(tmp_path / "a.txt", "text")
        with pytest.raises(SslkitError, match=message):
            find_labeled_words(str(tmp_path / name))
    train, test = (write(tmp_path / f"{part}.conllu", CONLLU) for part in ("train", "test"))
    assert find_labeled_words(str(tmp_path)) == {"train": train, "test": test}
    assert find_labeled_words(str(test)) == {"train": test}
