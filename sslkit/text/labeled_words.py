"""Sentences whose words have labels: CoNLL-U files and those of the CoNLL shared tasks; and the entities that labels mark."""

from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.data.tables import read_text

_SUFFIXES = (".conllu", ".conll")
_COLUMNS = {"upos": 3, "xpos": 4}  # of CoNLL-U that are labels
_WIDTH = 10  # columns of CoNLL-U
LABELED_WORDS = "name labeled words: a .conllu or .conll file, or a folder with train and test"
_BOUNDARY = "-DOCSTART-"
OUTSIDE = "O"

Entity = tuple[str, int, int]  # type, first word, word after the last one


@dataclass(frozen=True)
class LabeledWords:
    """Sentences as words and their labels; `entities`: labels mark these by IOB2 (a converted file may have used IOB1)."""

    location: str
    sentences: list[tuple[list[str], list[str]]]
    entities: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels that occur, sorted."""
        return tuple(sorted({label for _, labels in self.sentences for label in labels}))

    @property
    def words(self) -> int:
        """Return the number of words."""
        return sum(len(words) for words, _ in self.sentences)

    def fingerprint(self) -> str:
        """Return a hash of words and labels."""
        digest = blake2b(digest_size=8)
        for words, labels in self.sentences:
            digest.update("\n".join(f"{word}\t{label}" for word, label in zip(words, labels, strict=True)).encode() + b"\n\n")
        return digest.hexdigest()

    def subset(self, rows: list[int]) -> "LabeledWords":
        """Return some of the sentences."""
        return replace(self, sentences=[self.sentences[row] for row in rows])


def find_labeled_words(data: str) -> dict[str, Path]:
    """Return the file of labeled words that `--data` names, or train and test of a folder, by part."""
    path = Path(data)
    if path.is_dir():
        for suffix in _SUFFIXES:
            files = {part: path / f"{part}{suffix}" for part in ("train", "test")}
            if files["train"].is_file():
                return {part: file for part, file in files.items() if file.is_file()}
        raise SslkitError(f"{path} has no train.conllu or train.conll", "name a file", flag="data")
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        problem = f"{path} does not exist" if not path.exists() else f"{path} is not a file of labeled words"
        raise SslkitError(problem, f"expected {' or '.join(_SUFFIXES)}, or a folder with train and test", flag="data")
    return {"train": path}


def read_labeled_words(path: Path, label: str | None, flag: str = "data") -> LabeledWords:
    """Read a file of labeled words; raises SslkitError, naming the line, for one that is malformed.

    Of CoNLL-U (ten columns with tabs) the labels are the column `upos`, or `label`; ranges of words (`1-2`) and empty nodes
    (`8.1`) are left out. Of other files words stand first in a line and labels last, with tabs or else blanks between.
    Labels of entities may follow IOB1, in which `B-` only parts neighbors, and are converted to IOB2.
    """
    if path.suffix.lower() == ".conllu":
        sentences = _read_conllu(path, label or "upos", flag)
    elif label is not None:
        raise SslkitError(f"{path} has one label per word, in its last column", "leave it out", flag="label")
    else:
        sentences = _read_conll(path, flag)
    if not sentences:
        raise SslkitError(f"{path} has no sentences", "expected a word and its label in each line", flag=flag)
    labels = {label for _, labels in sentences for label in labels}
    entities = any(label[:2] in ("B-", "I-") for label in labels)
    others = sorted(label for label in labels if label != OUTSIDE and label[:2] not in ("B-", "I-"))
    if entities and others:
        raise SslkitError(f"{path} has labels such as {others[0]} beside B- and I-", "use IOB1 or IOB2", flag=flag)
    if entities:
        sentences = _to_iob2(sentences, path, flag)
    return LabeledWords(str(path), sentences, entities)


def _read_conllu(path: Path, label: str, flag: str) -> list[tuple[list[str], list[str]]]:
    if label not in _COLUMNS:
        hint = did_you_mean(label, list(_COLUMNS))
        raise SslkitError(f"CoNLL-U has no labels called {label}", hint, flag="label")
    rows: list[tuple[str, str] | None] = []
    for number, line in _numbered_lines(path, flag):
        if line.startswith("#"):
            continue
        cells = line.split("\t") if line else []
        if cells and len(cells) != _WIDTH:
            problem = f"line {number} of {path} has {len(cells)} columns"
            raise SslkitError(problem, f"CoNLL-U has {_WIDTH}, with tabs between", flag=flag)
        if not cells or cells[0].isdigit():  # not 1-2 or 8.1
            rows.append((cells[1], cells[_COLUMNS[label]]) if cells else None)
    return _sentences(rows)


def _read_conll(path: Path, flag: str) -> list[tuple[list[str], list[str]]]:
    rows: list[tuple[str, str] | None] = []
    for number, line in _numbered_lines(path, flag):
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == _BOUNDARY:
            rows.append(None)
            continue
        if len(cells) < 2 or not cells[0] or not cells[-1]:
            raise SslkitError(f"line {number} of {path} is {line!r}", "expected a word and its label", flag=flag)
        rows.append((cells[0], cells[-1]))
    return _sentences(rows)


def _numbered_lines(path: Path, flag: str) -> list[tuple[int, str]]:
    lines = read_text(path, flag).replace("\r\n", "\n").split("\n")
    return list(enumerate(lines, start=1))


def _sentences(rows: list[tuple[str, str] | None]) -> list[tuple[list[str], list[str]]]:
    """Return words and labels of each sentence; a row that is None ends one."""
    sentences: list[tuple[list[str], list[str]]] = []
    ended = True
    for row in rows:
        if row is None:
            ended = True
            continue
        if ended:
            sentences.append(([], []))
        ended = False
        sentences[-1][0].append(row[0])
        sentences[-1][1].append(row[1])
    return sentences


def _to_iob2(sentences: list[tuple[list[str], list[str]]], path: Path, flag: str) -> list[tuple[list[str], list[str]]]:
    """Return labels in which every entity begins with `B-`; raises SslkitError for a file in which only some do."""
    starts = {"B": 0, "I": 0}  # how entities begin that no other of their type stands before
    for _, labels in sentences:
        for before, label in pairwise([OUTSIDE, *labels]):
            if label != OUTSIDE and before[2:] != label[2:]:
                starts[label[0]] += 1
    if starts["B"] and starts["I"]:
        problem = f"{path} begins {starts['B']} entities with B- and {starts['I']} with I-"
        raise SslkitError(problem, "use one scheme, IOB1 or IOB2", flag=flag)
    if not starts["I"]:
        return sentences
    converted = []
    for words, labels in sentences:
        tags = list(labels)
        for kind, first, _ in find_entities(labels):
            tags[first] = f"B-{kind}"
        converted.append((words, tags))
    return converted


def find_entities(labels: list[str]) -> list[Entity]:
    """Return the entities that labels of a sentence mark, in the order of their words.

    As in the CoNLL shared tasks' conlleval, an `I-` that follows no word of its type begins an entity, too.
    """
    entities: list[Entity] = []
    start, kind = 0, ""
    for place, label in enumerate([*labels, OUTSIDE]):
        prefix, _, now = label.partition("-")
        if kind and (prefix != "I" or now != kind):
            entities.append((kind, start, place))
            kind = ""
        if prefix in ("B", "I") and not kind:
            start, kind = place, now
    return entities
