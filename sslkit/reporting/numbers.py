"""How results and their numbers are written, in tables of all kinds."""

from typing import Any


def protocol_of(result: dict[str, Any]) -> str:
    """Return the id of a result's protocol; settings by hand have none."""
    return result.get("protocol") or f"{result['command']}, by hand"


def share(row: dict[str, Any], name: str) -> str:
    """Return a share of 1 in a result's row as a percentage, with the seeds' deviation if there is one."""
    deviation = row.get(f"{name}_deviation")
    return f"{row[name]:.1%}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def interval(row: dict[str, Any], name: str) -> str:
    """Return the row's 95% interval of a share, in percent."""
    low, high = row[f"{name}_interval"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def p_value(row: dict[str, Any]) -> str:
    """Return the row's p-value, nothing if it has none."""
    value = row.get("p_value")
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
