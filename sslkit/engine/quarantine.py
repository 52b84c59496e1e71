"""Unreadable samples: `broken.csv` in the run folder, and the share of them at which a run fails."""

import csv
from collections.abc import Iterable

from sslkit.console import say
from sslkit.engine.parallel import World
from sslkit.engine.run_folder import BROKEN, RunFolder
from sslkit.engine.settings import Settings


class Quarantine:
    """Collect the samples that cannot be read, list them in `broken.csv`, and count them."""

    def __init__(self, settings: Settings, folder: RunFolder, world: World) -> None:
        self.settings, self.folder, self.world = settings, folder, world
        self.rows: set[int] = set()  # all unreadable samples since the start of this process
        self._pending: list[tuple[int, str]] = []
        self._listed: set[str] = set()

    def add(self, unreadable: list[tuple[int, str]]) -> None:
        """Add (row, reason) of samples that this process could not read."""
        self._pending += unreadable

    def report(self) -> None:
        """List what all processes have added since the last report; every process has to call it."""
        unreadable = self.world.gather_lists(self._pending)
        self._pending = []
        source = self.settings.source
        new = self._append((source.name(row), reason) for row, reason in unreadable)
        if new:
            noun = source.noun.removesuffix("s") if new == 1 else source.noun
            say(f"skipped {new} unreadable {noun} (listed in {self.folder.file(BROKEN)})")
        self.rows |= {row for row, _ in unreadable}

    @property
    def exceeds_limit(self) -> bool:
        """Return whether more samples than `--max-broken` allows cannot be read."""
        return len(self.rows) > self.settings.spec.max_broken * self.settings.data.samples

    def _append(self, unreadable: Iterable[tuple[str, str]]) -> int:
        """Append (name, reason) of samples that `broken.csv` does not have yet; return how many were new."""
        if not self.folder.writes:
            return 0
        file = self.folder.file(BROKEN)
        if not self._listed and file.exists():
            with open(file, newline="", encoding="utf-8", errors="surrogateescape") as stream:
                self._listed = {row[0] for row in csv.reader(stream)}
        new = [(name, reason) for name, reason in dict(unreadable).items() if name not in self._listed]
        if new:
            with self.folder.writing(), open(file, "a", newline="", encoding="utf-8", errors="surrogateescape") as stream:
                writer = csv.writer(stream)
                if not self._listed:
                    writer.writerow(["path", "reason"])
                writer.writerows(new)
            self._listed.update(name for name, _ in new)
        return len(new)


def too_many_unreadable(broken: int, settings: Settings, tried: int | None = None) -> str:
    """Return the message for too many unreadable samples, of those `tried` or of all."""
    noun, share = settings.source.noun, settings.spec.max_broken
    return f"{broken:,} of {tried or settings.data.samples:,} {noun} cannot be read, more than --max-broken {share:g}"
