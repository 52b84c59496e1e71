"""Leaks: predictions that are computed from what the loss compares them with, noticed by changing it.

The loss targets what moves it while the outputs are held. A prediction that moves with it has learned nothing by being right.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sslkit.contract.task import ON_REQUEST, Batch, PretextTask
from sslkit.engine.micro_batches import as_dict, named_terms, widen
from sslkit.engine.seeds import seed_stage

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

    `prepared` is what `transform` gets; the number of a call is that of the random values it draws.
    """
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
        self.used = self._used_outputs()
        self.terms = self._terms(self.batch)

    def entries(self) -> str | None:
        """Replace each entry of the transformed batch by that of other samples: no prediction may move if its loss does."""
        for name, value in self.batch.items():
            if not isinstance(value, Tensor) or name in self.task.visible_targets:
                continue
            terms = self._moved_terms(self._rolled(name))
            trained = {key for term in terms for key in self.used[term]}
            if not trained:
                continue
            for output in self._outputs_moved_by(name, trained):
                return (
                    f"{_named(output)} depends on {name}, which the loss compares it with; if {name} is a mask, or an "
                    f"input to be reconstructed, set visible_targets = ({name!r},)"
                )
            for other in self.batch:
                if value.numel() == len(value) and self._describes(other) and other != name:
                    for output in self._outputs_moved_by(other, trained):
                        if _tells(self._redraw(other), self._redraw(name).flatten()):
                            return f"{_named(output)} depends on {other}, which tells {name}, which the loss compares it with"
        return None

    def descriptions(self) -> str | None:
        """Replace indices and labels of samples by those of others: no prediction may move."""
        for name in _DESCRIBES:
            if name in self.prepared and name not in self.task.visible_targets:
                value = self.prepared[name].roll(1, dims=0)
                moved = self._outputs_moved(self.transform({**self.prepared, name: value}, 0))
                for key in sorted(self.learned):
                    if moved[key].any():
                        return f"{_named(key)} depends on the {name} of a sample, which only the loss may use"
        return None

    def hidden_parts(self) -> str | None:
        """Replace parts of samples: if a term targets some of what is predicted from, these have to be hidden.

        Where it targets all of it there is nothing to hide: an autoencoder reconstructs what it gets.
        """
        for name, value in self.prepared.items():
            content = isinstance(value, Tensor) and name not in ON_REQUEST and value[0].numel() >= _CONTENT
            if content and self._moved_terms(self._replaced(name, torch.ones((), dtype=torch.bool), 1)):
                leak = self._hidden_parts_of(name)
                if leak is not None:
                    return leak
        return None

    def _hidden_parts_of(self, name: str) -> str | None:
        windows = _windows(self.prepared[name])
        cells = (len(self.prepared[name]), len(windows))
        targeted = {term: torch.zeros(cells, dtype=torch.int) for term in self.terms}  # by how many donors
        reached = {key: torch.zeros(cells, dtype=torch.bool) for key in self.outputs}
        pairs = [(term, key) for term, keys in self.used.items() for key in sorted(keys)]
        for number, window in enumerate(windows):
            for donor in _DONORS:
                changed = self._replaced(name, window, donor)
                for term, rows in self._rows_targeted(changed).items():
                    targeted[term][:, number] += rows
                for key, rows in self._outputs_moved(changed).items():
                    reached[key][:, number] |= rows
            pairs = [(term, key) for term, key in pairs if not (targeted[term].bool() & ~reached[key]).any()]
            if not pairs:
                return None  # each prediction misses some of what its term targets
        for term, key in pairs:
            surely, perhaps = int((targeted[term] == len(_DONORS)).sum()), int(targeted[term].bool().sum())
            # A target that only some donors move is quantized: what moves it not at all may be targeted, too.
            if surely >= max(_EVIDENCE, 0.8 * perhaps) and self._sees_more(name, windows, targeted[term] == 0, (term, key)):
                return f"{_named(key)} depends on all parts of {name} that the loss targets: none of them is hidden"
        return None

    def _sees_more(self, name: str, windows: Tensor, others: Tensor, pair: tuple[str, str]) -> bool:
        """Return whether a prediction sees parts of a sample that its term does not target, not even all at once."""
        term, key = pair
        part = (others.float() @ windows.flatten(1).float() > 0).view(len(others), *windows.shape[1:])
        untargeted = torch.ones(len(others), dtype=torch.bool)
        reached = torch.zeros(len(others), dtype=torch.bool)
        for donor in _DONORS:
            changed = self._replaced(name, part, donor)
            untargeted &= ~self._rows_targeted(changed)[term]
            reached |= self._outputs_moved(changed)[key]
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

    def _rolled(self, name: str) -> Batch:
        return {**self.batch, name: self.batch[name].roll(1, dims=0)}

    def _outputs_moved_by(self, name: str, trained: set[str]) -> list[str]:
        """Return which of some outputs move if samples get an entry of each other."""
        moved = self._outputs_moved(self._rolled(name))
        return [key for key in sorted(trained) if moved[key].any()]

    def _replaced(self, name: str, part: Tensor, donor: int) -> Batch:
        """Return the transform of samples of which a part is that of other samples."""
        value = self.prepared[name]
        return self.transform({**self.prepared, name: torch.where(part, value.roll(donor, dims=0), value)}, 0)

    def _rows_targeted(self, changed: Batch) -> dict[str, Tensor]:
        """Return for each term which rows of a changed batch move it, each of them alone."""
        count = len(next(iter(self.outputs.values())))
        moved = [self._moved_terms(_with_row(self.batch, changed, row)) for row in range(count)]
        return {term: torch.tensor([term in terms for terms in moved]) for term in self.terms}

    def _moved_terms(self, changed: Batch) -> set[str]:
        """Return the terms that a batch moves while the outputs are held."""
        terms = self._terms(changed)
        return {term for term, value in self.terms.items() if not torch.equal(value, terms[term])}

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        held = {name: self.batch[name] for name in self.task.visible_targets}
        seed_stage(0, "loss", 0)
        with torch.no_grad():
            return named_terms(self.task.loss(self.outputs.get("", self.outputs), {**batch, **held}))

    def _outputs_moved(self, changed: Batch) -> dict[str, Tensor]:
        """Return for each output which of its rows a batch moves."""
        seed_stage(0, "predict", 0)
        with torch.no_grad():
            outputs = as_dict(widen(self.task.predict(changed)))
        return {name: (value != outputs[name]).reshape(len(value), -1).any(dim=1) for name, value in self.outputs.items()}

    def _used_outputs(self) -> dict[str, set[str]]:
        """Return for each term the outputs that it trains."""
        leaves = {name: value.clone().requires_grad_(name in self.learned) for name, value in self.outputs.items()}
        seed_stage(0, "loss", 0)
        terms = named_terms(self.task.loss(leaves.get("", leaves), self.batch))
        learned, used = [leaves[name] for name in sorted(self.learned)], dict[str, set[str]]()
        for term, value in terms.items():
            used[term] = set()
            if learned and value.requires_grad:
                gradients = torch.autograd.grad(value, learned, retain_graph=True, allow_unused=True)
                named = zip(sorted(self.learned), gradients, strict=True)
                used[term] = {name for name, gradient in named if gradient is not None and bool(gradient.any())}
        return used


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


def _named(output: str) -> str:
    return f"{output} of predict" if output else "the output of predict"
