"""One JupyterLab for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Yield a running JupyterLab; for tests marked `browser`, which are only run where there is one."""
    from tests.environment import chromium_binary

    path = chromium_binary()
    assert path
    with Lab(path) as running:
        yield running
