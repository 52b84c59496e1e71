"""Leaks: predictions that are computed from what the loss compares them with, noticed by changing it.

The loss targets what moves it while the outputs are held. A prediction that moves with it has learned nothing by being right.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sslkit.contract.task import ON_REQUEST, Batch, PretextTask
from sslkit.engine.micro_batches import as_dict, named_terms, widen
from sslkit.engine.seeds import seed_stage
from sslkit.testing.bench import first_difference

Transform = Callable[[Batch, int], Batch]  # of a prepared batch; equal numbers draw equal values

_DESCRIBES = ("index", "label")  # entries on request that describe a sample and are no part of it

_CONTENT = 16  # values of a sample from which on an entry of the data is its content

_FEW = 64  # values of a sample up to which an entry of a batch may be another form of a target

_DRAWS = 4  # transforms in which that is looked for

_WINDOWS, _SHARE = 8, 64  # parts of a sample that are replaced, one at a time; each is 1/64 of every long side

_DONORS = (1, 2)  # rows further down, whose values replace those of a sample: two, as a quantized target may not notice one

_EVIDENCE = 4  # parts that the loss targets, and of which some have to be hidden


def find_leak(task: PretextTask, prepared: Batch, transform: Transform) -> str | None:
    """Return which prediction depends on its target, and on what of it; None if none does.

    `prepared` is what `transform` gets; the number of a call is that of the random values it draws. Nothing is compared if
    two calls with one number differ.
    """
    if first_difference(transform(prepared, 0), transform(prepared, 0)) is not None:
        return None  # which another check reports: here it would look like a leak
    search = _Search(task, prepared, transform)
    return search.descriptions() or search.entries() or search.hidden_parts()


class _Search:
    """Change what a task gets, and compare terms of the loss and outputs with those before; rows have nothing in common."""

    def __init__(self, task: PretextTask, prepared: Batch, transform: Transform) -> None:
        self.task, self.prepared, self.transform = task.eval(), prepared, transform  # eval: BatchNorm mixes rows
        self.batch = transform(prepared, 0)
        with torch.enable_grad():
            seed_stage(0, "predict", 0)
            outputs = as_dict(widen(task.predict(self.batch)))
        self.learned = {name for name, value in outputs.items() if value.requires_grad}  # others are targets, like a teacher's
        self.outputs = {name: value.detach() for name, value in outputs.items()}
        self.gradients = self._gradients(self.batch)
        self.used = {
            term: {name for name, gradient in gradients.items() if gradient.any()} for term, gradients in self.gradients.items()
        }
        self.terms = self._terms(self.batch)

    def entries(self) -> str | None:
        """Replace each entry of the transformed batch by that of other samples: no prediction may move if its loss does."""
        for name, value in self.batch.items():
            if not isinstance(value, Tensor) or name in self.task.visible_targets:
                continue
            terms = self._moved_terms(self._roll(name))
            trained = {key for term in terms for key in self.used[term]}
            if not trained:
                continue
            for output in self._moved_outputs(name, trained):
                return (
                    f"{_name_of(output)} depends on {name}, which the loss compares it with; if {name} is a mask, or an "
                    f"input to be reconstructed, set visible_targets = ({name!r},)"
                )
            for other in self.batch:
                if value.numel() == len(value) and self._describes(other) and other != name:
                    for output in self._moved_outputs(other, trained):
                        if _tells(self._redraw(other), self._redraw(name).flatten()):
                            return (
                                f"{_name_of(output)} depends on {other}, which reveals {name}, which the loss compares it with"
                            )
        return None

    def descriptions(self) -> str | None:
        """Replace indices and labels of samples by those of others: no prediction may move."""
        for name in _DESCRIBES:
            if name in self.prepared and name not in self.task.visible_targets:
                value = self.prepared[name].roll(1, dims=0)
                moved = self._moved_rows(self.transform({**self.prepared, name: value}, 0))
                for key in sorted(self.learned):
                    if moved[key].any():
                        return (
                            f"{_name_of(key)} depends on the {name} of a sample, which only the loss may use; "
                            f"if predictions are conditioned on it, set visible_targets = ({name!r},)"
                        )
        return None

    def hidden_parts(self) -> str | None:
        """Replace parts of samples: if a term targets some of what is predicted from, these have to be hidden.

        Where it targets all of it there is nothing to hide: an autoencoder reconstructs what it gets.
        """
        for name, value in self.prepared.items():
            content = isinstance(value, Tensor) and name not in ON_REQUEST and value[0].numel() >= _CONTENT
            if content and self._moved_terms(self._replace(name, torch.ones((), dtype=torch.bool), 1)):
                leak = self._hidden_parts_of(name)
                if leak is not None:
                    return leak
        return None

    def _hidden_parts_of(self, name: str) -> str | None:
        windows = _windows(self.prepared[name])
        cells = (len(self.prepared[name]), len(windows))
        targeted = {term: torch.zeros(cells, dtype=torch.int) for term in self.terms}  # by how many donors
        pairs = [(term, key) for term, keys in self.used.items() for key in sorted(keys)]
        reached = {pair: torch.zeros(cells, dtype=torch.bool) for pair in pairs}
        for number, window in enumerate(windows):
            for donor in _DONORS:
                changed = self._replace(name, window, donor)
                rows, moved = self._targeted_rows(changed), self._moved_values(changed)
                for term in targeted:
                    targeted[term][:, number] += rows[term]
                for term, key in pairs:
                    reached[term, key][:, number] |= self._sees_target((term, key), changed, rows[term], moved[key])
            pairs = [pair for pair in pairs if not (targeted[pair[0]].bool() & ~reached[pair]).any()]
            if not pairs:
                return None  # each prediction misses some of what its term targets
        for term, key in pairs:
            surely, perhaps = int((targeted[term] == len(_DONORS)).sum()), int(targeted[term].bool().sum())
            # A target that only some donors move is quantized: what moves it not at all may be targeted, too.
            if surely >= max(_EVIDENCE, 0.8 * perhaps) and self._sees_more(name, windows, targeted[term] == 0, (term, key)):
                return (
                    f"{_name_of(key)} depends on every part of {name} that the loss compares it with; none is masked; if the "
                    "task is autoregressive or denoises, set visible_targets = (...) to its targets"
                )
        return None

    def _sees_target(self, pair: tuple[str, str], changed: Batch, rows: Tensor, moved: Tensor) -> Tensor:
        """Return for each row whether a prediction moves in the place where its term compares it with what changed.

        That place is where the gradient changes: an autoregressive prediction moves with its target, but after it.
        """
        term, key = pair
        result = torch.zeros_like(rows)
        for row in rows.nonzero().flatten().tolist():
            gradient = self._gradients(_with_row(self.batch, changed, row), term)[term][key]
            place = gradient[row] != self.gradients[term][key][row]
            if not place.any():  # the gradient of an absolute difference is its sign
                place = torch.ones_like(place)
            result[row] = (moved[row] & place).any()
        return result

    def _sees_more(self, name: str, windows: Tensor, others: Tensor, pair: tuple[str, str]) -> bool:
        """Return whether a prediction sees parts of a sample that its term does not target, not even all at once."""
        term, key = pair
        part = (others.float() @ windows.flatten(1).float() > 0).view(len(others), *windows.shape[1:])
        untargeted = torch.ones(len(others), dtype=torch.bool)
        reached = torch.zeros(len(others), dtype=torch.bool)
        for donor in _DONORS:
            changed = self._replace(name, part, donor)
            untargeted &= ~self._targeted_rows(changed)[term]
            reached |= self._moved_rows(changed)[key]
        return bool((untargeted & reached).any())

    def _describes(self, name: str) -> bool:
        """Return whether an entry of the batch has few values per sample, none of which comes from its content."""
        value = self.batch[name]
        if not isinstance(value, Tensor) or name in self.task.visible_targets or value[0].numel() > _FEW:
            return False
        others = {
            name: value.roll(1, dims=0)
            for name, value in self.prepared.items()
            if isinstance(value, Tensor) and name not in ON_REQUEST
        }
        return torch.equal(value, self.transform({**self.prepared, **others}, 0)[name])

    def _redraw(self, name: str) -> Tensor:
        """Return an entry of several transforms, with other random values in each, `[draws * B, ...]`."""
        return torch.cat([self.transform(self.prepared, draw)[name] for draw in range(_DRAWS)])

    def _roll(self, name: str) -> Batch:
        return {**self.batch, name: self.batch[name].roll(1, dims=0)}

    def _moved_outputs(self, name: str, trained: set[str]) -> list[str]:
        """Return which of some outputs move if samples get an entry of each other."""
        moved = self._moved_rows(self._roll(name))
        return [key for key in sorted(trained) if moved[key].any()]

    def _replace(self, name: str, part: Tensor, donor: int) -> Batch:
        """Return the transform of samples of which a part is that of other samples."""
        value = self.prepared[name]
        return self.transform({**self.prepared, name: torch.where(part, value.roll(donor, dims=0), value)}, 0)

    def _targeted_rows(self, changed: Batch) -> dict[str, Tensor]:
        """Return for each term which rows of a changed batch move it, each of them alone."""
        count = len(next(iter(self.outputs.values())))
        moved = [self._moved_terms(_with_row(self.batch, changed, row)) for row in range(count)]
        return {term: torch.tensor([term in terms for terms in moved]) for term in self.terms}

    def _moved_terms(self, changed: Batch) -> set[str]:
        """Return the terms that a batch moves while the outputs are held."""
        terms = self._terms(changed)
        return {term for term, value in self.terms.items() if not torch.equal(value, terms[term])}

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        seed_stage(0, "loss", 0)
        with torch.no_grad():
            return named_terms(self.task.loss(self.outputs.get("", self.outputs), self._hold(batch)))

    def _hold(self, batch: Batch) -> Batch:
        """Return a batch with the visible targets as they were."""
        return {**batch, **{name: self.batch[name] for name in self.task.visible_targets}}

    def _moved_rows(self, changed: Batch) -> dict[str, Tensor]:
        """Return for each output which of its rows a batch moves."""
        return {name: moved.reshape(len(moved), -1).any(dim=1) for name, moved in self._moved_values(changed).items()}

    def _moved_values(self, changed: Batch) -> dict[str, Tensor]:
        """Return for each output which of its values a batch moves."""
        seed_stage(0, "predict", 0)
        with torch.no_grad():
            outputs = as_dict(widen(self.task.predict(changed)))
        return {name: value != outputs[name] for name, value in self.outputs.items()}

    def _gradients(self, batch: Batch, only: str | None = None) -> dict[str, dict[str, Tensor]]:
        """Return the gradients of terms, or of one, with respect to the outputs, by term and output."""
        leaves = {name: value.clone().requires_grad_(name in self.learned) for name, value in self.outputs.items()}
        learned = {name: leaves[name] for name in sorted(self.learned)}
        seed_stage(0, "loss", 0)
        terms = named_terms(self.task.loss(leaves.get("", leaves), self._hold(batch)))
        gradients = {}
        for term, value in terms.items():
            if only in (None, term):
                of_term = dict.fromkeys(learned, torch.zeros(()))
                if learned and value.requires_grad:
                    values = torch.autograd.grad(value, list(learned.values()), retain_graph=True, materialize_grads=True)
                    of_term = dict(zip(learned, values, strict=True))
                gradients[term] = of_term
        return gradients


def _with_row(batch: Batch, changed: Batch, row: int) -> Batch:
    """Return a batch with one row of another."""

    def merge(value: Tensor, other: Tensor) -> Tensor:
        return torch.cat([value[:row], other[row : row + 1], value[row + 1 :]])

    return {name: merge(value, changed[name]) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _tells(entry: Tensor, target: Tensor) -> bool:
    """Return whether equal rows of an entry `[N, ...]` have equal targets `[N]`, or a column of it orders the targets."""
    _, labels, counts = target.unique(return_inverse=True, return_counts=True)
    if counts.max() > 0.75 * len(labels):  # nearly constant
        return False
    values = entry.reshape(len(entry), -1)
    groups = values.unique(dim=0, return_inverse=True)[1]
    pairs = len(torch.stack([groups, labels], dim=1).unique(dim=0))
    if pairs == int(groups.max()) + 1 <= len(labels) // 2:
        return True
    steps = labels[values.argsort(dim=0, stable=True)].diff(dim=0)
    return bool(((steps >= 0).all(dim=0) | (steps <= 0).all(dim=0)).any())


def _windows(value: Tensor) -> Tensor:
    """Return small parts of a sample at random places, bool `[parts, ...]`; short sides, such as channels, are whole."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.zeros(_WINDOWS, *value.shape[1:], dtype=torch.bool)
    for window in windows:
        part = window
        for axis, side in enumerate(value.shape[1:]):
            if side >= _CONTENT:
                length = max(1, side // _SHARE)
                part = part.narrow(axis, int(torch.randint(side - length + 1, (), generator=generator)), length)
        part.fill_(True)
    return windows


def _name_of(output: str) -> str:
    return f"{output} of predict" if output else "the output of predict"
