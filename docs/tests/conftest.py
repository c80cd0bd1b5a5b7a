"""What the tests of the site share: the site, a browser, and a page that is opened again and again."""

from __future__ import annotations

import pytest
from browser import CANDIDATES, DESKTOP, SITE, chromium, executable, served


def pytest_configure():
    """Once, instead of an error in every test."""
    if not (SITE / "index.html").is_file():
        raise pytest.UsageError(f"got no {SITE}; expected the built site; run nox -s site, which builds it first")
    if executable() is None:
        raise pytest.UsageError(
            f"got none of {', '.join(CANDIDATES)}; expected a browser;"
            " install Chromium (Debian: apt-get install chromium), or let NCML_CHROMIUM name one"
        )


@pytest.fixture(scope="session")
def site():
    """The address of the site's first page."""
    with served(SITE) as url:
        yield url


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def page(browser):
    with browser.new_context(viewport=DESKTOP) as context:
        yield context.new_page()


@pytest.fixture
def fresh(browser):
    """Makes a page of a visitor of its own, with the options of Playwright's ``new_context``."""
    contexts = []

    def make(**options):
        contexts.append(browser.new_context(**{"viewport": DESKTOP, **options}))
        contexts[-1].set_default_timeout(10_000)
        return contexts[-1].new_page()

    yield make
    for context in contexts:
        context.close()
