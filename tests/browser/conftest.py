"""One JupyterLab, and one page of it, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Lab


@pytest.fixture(scope="package")
def lab(chromium: str) -> Iterator[Lab]:
    """Yield a running JupyterLab; for tests marked `browser`.

    It ends with the last test of this folder: Playwright keeps an event loop in this thread for as long as a browser
    is open, and no other can run beside it.
    """
    with Lab(chromium) as running:
        # a worker's start and a loaded machine included
        expect.set_options(timeout=30_000)
        yield running
