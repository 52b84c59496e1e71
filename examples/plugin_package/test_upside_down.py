"""UpsideDown keeps the promises of sslkit's contract."""

import pytest
from sslkit.testing import check_task
from sslkit_upside_down import UpsideDown


@pytest.mark.parametrize("full", [False, True])
def test_contract(full: bool) -> None:
    """Keep every promise; the full check takes half a minute."""
    broken = [verdict for verdict in check_task(UpsideDown, full=full) if not verdict.passed]
    assert not broken, broken
