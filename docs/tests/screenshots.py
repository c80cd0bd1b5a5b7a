"""Writes pictures of the main pages, wide, on a phone and in the dark, into docs/_build/screenshots.

``python docs/tests/screenshots.py [PAGE ...]``; pages are given as ``learn/images``.
"""

from __future__ import annotations

import sys

from browser import DESKTOP, PHONE, SITE, chromium, served

from checks import load, view

PAGES = ["index", "learn/images", "gallery/index", "gallery/plot_1_two_moons", "reference/index", "reference/noise"]
PAGES += ["understand/method", "results/demo", "genindex"]
SHOTS = {"desktop": (DESKTOP, "light"), "phone": (PHONE, "light"), "dark": (DESKTOP, "dark")}


def main(pages: list[str]) -> None:
    missing = [name for name in pages if not (SITE / f"{name}.html").is_file()]
    if missing:
        sys.exit(f"pages: got {', '.join(missing)}; expected names such as learn/images, of a site that is built")
    folder = SITE.with_name("screenshots")
    folder.mkdir(exist_ok=True)
    with served(SITE) as url, chromium() as browser:
        page = browser.new_page()
        for name in pages:
            load(page, f"{url}{name}.html")
            for shot, (size, scheme) in SHOTS.items():
                view(page, size, scheme)
                file = folder / f"{name.replace('/', '-')}-{shot}.png"
                page.screenshot(path=file, full_page=True, animations="disabled")
                print(file)


if __name__ == "__main__":
    main(sys.argv[1:] or PAGES)
