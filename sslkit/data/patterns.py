"""What stands in the paths of samples, `--label-pattern` and `--group-pattern`, and paths that begin at them."""

import os
import re

from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.source import OpenSpec
from sslkit.data.index import Index, with_groups, with_labels


def with_patterns(index: Index, spec: OpenSpec) -> Index:
    """Return the index with what the patterns of the spec find in each path, as its label and as its group.

    A label that is not found is unknown. Raises SslkitError if none is found, or not every group.
    """
    if spec.label_pattern is not None:
        labels = _search(index, spec.label_pattern, "label_pattern", "label" if spec.label is not None else None)
        index = with_labels(index, labels)
    if spec.group_pattern is not None:
        groups = _search(index, spec.group_pattern, "group_pattern", "group" if spec.group is not None else None)
        missing = [index.name(row) for row, group in enumerate(groups) if not group]
        if missing:
            raise SslkitError(
                f"{spec.group_pattern} finds nothing in {len(missing):,} of {len(index):,} paths, such as {missing[0]}",
                "every sample needs a group",
                flag="group_pattern",
            )
        index = with_groups(index, groups)
    return index


def path_beside(sample: str, pattern: str) -> str:
    """Return the path that a pattern names from the folder of a sample; {stem} and {folder} are parts of the sample's path."""
    folder, name = os.path.split(sample)
    for part, value in {"{stem}": os.path.splitext(name)[0], "{folder}": os.path.basename(folder)}.items():
        pattern = pattern.replace(part, value)
    return os.path.normpath(os.path.join(folder, pattern))


def _search(index: Index, pattern: str, flag: str, other: str | None) -> list[str]:
    """Return what the group of a pattern holds for each path, empty where it does not match."""
    if other is not None:
        raise SslkitError(f"{flag_name(other)} names them already", "leave one out", flag=flag)
    if index.array is not None:
        raise SslkitError(f"{index.source} is an array, whose rows have no paths", "leave it out", flag=flag)
    values = [match.group(1) or "" if (match := re.search(pattern, path)) else "" for path in index.paths]
    if not any(map(str.strip, values)):
        raise SslkitError(f"{pattern} finds nothing in any path of {index.source}, such as {index.name(0)}", flag=flag)
    return values
