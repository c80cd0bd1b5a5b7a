"""The built site on a port of its own, and a Chromium that can reach nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, sync_playwright

SITE = Path(__file__).parents[1] / "_build" / "html"
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
NAMED = os.environ.get("NCML_CHROMIUM")
CANDIDATES = [NAMED] if NAMED else ["chromium", "chromium-browser", "google-chrome"]
ARGS = [
    "--no-sandbox",  # root in a container has no sandbox; the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def executable() -> str | None:
    """The browser's path, if there is one."""
    return next(filter(None, map(shutil.which, CANDIDATES)), None)


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Be quiet."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Under the folder's name, as on most hosts: a link from the root, or out of the site, breaks."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder.parent)) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{folder.name}/"
        finally:
            server.shutdown()


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGS)
        try:
            yield browser
        finally:
            browser.close()
