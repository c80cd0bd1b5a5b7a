"""What must hold for any page: each check returns a list of problems, empty if there are none."""

from __future__ import annotations

import html
import pydoc
import re
import zlib
from functools import cache
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from browser import DESKTOP
from playwright.sync_api import Page

CONTRAST = 4.5  # WCAG 2, level AA
SMALLEST = 13  # pixels: the theme's code beside text of 16

STARTED = """async () => {
  const script = document.querySelector('script[src*="mathjax"]');
  if (!script) return true;
  await window.MathJax?.startup?.promise;
  return Boolean(window.MathJax?.startup);
}"""

# Visible text of the article, with its element; formulas have fonts and elements of their own.
TEXTS = """
const texts = [];
const walker = document.createTreeWalker(document.querySelector('article'), NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
  if (text && !element.closest('script, style, svg, mjx-container, .headerlink, .sd-hide-link-text')
      && element.checkVisibility({opacityProperty: true, visibilityProperty: true})) texts.push([text, element]);
}
"""

COLOURS = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const parsed = {};
function rgba(colour) {  // whatever notation the style uses
  if (!(colour in parsed)) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    parsed[colour] = [...canvas.getImageData(0, 0, 1, 1).data].map(value => value / 255);
  }
  return parsed[colour];
}
function over(top, bottom) {
  return [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * bottom[i]);
}
const backgrounds = new Map([[null, [1, 1, 1]]]);
function background(element) {
  if (!backgrounds.has(element)) {
    const own = rgba(getComputedStyle(element).backgroundColor);
    backgrounds.set(element, own[3] === 1 ? own.slice(0, 3) : over(own, background(element.parentElement)));
  }
  return backgrounds.get(element);
}
function luminance(colour) {
  const [r, g, b] = colour.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
"""


def view(page: Page, size: dict[str, int], scheme: str = "light") -> None:
    """On which screen the checks that follow see the page."""
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.getAnimations().forEach(animation => animation.finish())")  # colours fade over


def load(page: Page, url: str) -> list[str]:
    """Open a page on a wide, light screen and wait for its formulas; what went wrong meanwhile."""
    problems = []
    origin = "{0.scheme}://{0.netloc}/".format(urlsplit(url))

    def console(message):
        if message.type == "error":
            problems.append(f"console: {message.text} {message.location['url']}")

    def request(request):
        if not request.url.startswith((origin, "data:", "blob:")):
            problems.append(f"foreign request: {request.url}")

    listeners = {
        "console": console,
        "pageerror": lambda error: problems.append(f"script: {error}"),
        "request": request,
        "requestfailed": lambda request: problems.append(f"failed request: {request.url}"),
        "response": lambda response: (
            response.ok or response.status == 304 or problems.append(f"{response.status}: {response.url}")
        ),
    }
    view(page, DESKTOP)
    for event, listener in listeners.items():
        page.on(event, listener)
    page.goto(url)
    if not page.evaluate(STARTED):
        problems.append("MathJax did not start")
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    return problems


@cache
def anchors(file: Path) -> set[str]:
    return {html.unescape(name) for name in re.findall(r'\sid="([^"]*)"', file.read_text(encoding="utf-8"))}


def broken_links(page: Page, site: str, folder: Path) -> list[str]:
    """Links of the page at the open address to files or anchors that the site lacks; other hosts' are not tried."""
    host = urlsplit(site).netloc
    found = sorted(set(page.evaluate("[...document.links].map(link => link.href)")))
    return [link for link in found if urlsplit(link).netloc == host and not resolves(link, site, folder)]


def resolves(link: str, site: str, folder: Path) -> bool:
    parts = urlsplit(link)
    if not link.startswith(site):
        return False
    file = folder / unquote(parts.path.removeprefix(urlsplit(site).path))
    file = file / "index.html" if file.is_dir() else file
    anchor = unquote(parts.fragment)
    return file.is_file() and (not anchor or anchor in anchors(file))


def broken_images(page: Page) -> list[str]:
    return page.evaluate("""async () => {
      const images = [...document.images];
      for (const image of images) image.loading = 'eager';  // also what the visitor would have to scroll to
      await Promise.allSettled(images.map(image => image.decode()));
      return images.filter(image => !image.naturalWidth).map(image => image.getAttribute('src'));
    }""")


def bad_formulas(page: Page) -> list[str]:
    """TeX that MathJax refused, did not know (it prints that in red), or never saw."""
    return page.evaluate(f"""() => {{
      {TEXTS}
      const all = selector => [...document.querySelectorAll(selector)];
      return [
        ...all('mjx-merror').map(error => 'error: ' + error.dataset.mjxError),
        ...all('[mathcolor=red]').map(unknown => 'unknown: ' + unknown.textContent),
        ...all('.math').filter(math => !math.querySelector('mjx-container'))
          .map(math => 'not rendered: ' + math.textContent),
        ...texts.filter(([text, element]) => /\\\\[([]|\\$\\$/.test(text) && !element.closest('pre, code, .math'))
          .map(([text]) => 'raw: ' + text),
      ];
    }}""")


def too_wide(page: Page) -> list[str]:
    """What scrolls to the side, or is cut there. Code, tables and formulas may scroll, each by itself.

    The theme lets the whole text scroll instead of the page, so that the page's own width would tell nothing.
    """
    return page.evaluate("""() => {
      const boxes = [...document.querySelectorAll('html, .content, .content *')].filter(
        box => box === document.scrollingElement || getComputedStyle(box).overflowX !== 'visible');
      const wide = boxes.filter(
        box => box.scrollWidth > box.clientWidth && !box.closest('pre, .table-wrapper, .math-wrapper, mjx-container'));
      const outer = box => [...box.querySelectorAll('*')].findLast(
        part => part.getBoundingClientRect().right > box.getBoundingClientRect().left + box.clientWidth);
      const cause = box => outer(box)?.outerHTML.slice(0, 100);
      return wide.map(box => `${box.className}: ${box.scrollWidth} of ${box.clientWidth} px by ${cause(box)}`);
    }""")


def small_texts(page: Page) -> list[str]:
    return page.evaluate(
        f"""smallest => {{
          {TEXTS}
          const size = element => parseFloat(getComputedStyle(element).fontSize);
          return texts.filter(([, element]) => size(element) < smallest)
            .map(([text, element]) => `${{size(element)}} px: ${{text}}`);
        }}""",
        SMALLEST,
    )


def pale_background(page: Page) -> list[str]:
    value = page.evaluate(f"() => {{ {COLOURS} return luminance(background(document.querySelector('article'))) }}")
    return [] if value < 0.1 else [f"luminance of the background: {value:.2f}"]


def faint_texts(page: Page) -> list[str]:
    return page.evaluate(
        f"""least => {{
          {TEXTS} {COLOURS}
          const ratio = element => {{
            const paper = background(element);
            return contrast(over(rgba(getComputedStyle(element).color), paper), paper);
          }};
          return texts.map(([text, element]) => [ratio(element), text]).filter(([value]) => value < least)
            .map(([value, text]) => `${{value.toFixed(2)}}: ${{text}}`);
        }}""",
        CONTRAST,
    )


def figures_without_paper(page: Page) -> list[str]:
    """Figures are drawn in black, some on nothing."""
    return page.evaluate(f"""() => {{
      {COLOURS}
      return [...document.querySelectorAll('article img')].filter(image => luminance(background(image)) < 0.9)
        .map(image => image.getAttribute('src'));
    }}""")


def targets(folder: Path) -> dict[str, str]:
    """The Python names of the site's inventory, with the page and anchor of each."""
    text = zlib.decompress((folder / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    rows = re.findall(r"^(\S+) py:\S+ -?\d+ (\S+) ", text, re.MULTILINE)
    return {name: uri.replace("$", name) for name, uri in rows}


def missing_names(names: dict[str, str], modules: list[ModuleType]) -> list[str]:
    """Public names of modules that no target stands for, be it under another module."""
    shown = {}
    for name in names:
        shown.setdefault(name.rpartition(".")[2], []).append(pydoc.locate(name))
    return [
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if not name.startswith("__") and not any(getattr(module, name) is thing for thing in shown.get(name, []))
    ]


def dead_targets(names: dict[str, str], site: str, folder: Path) -> list[str]:
    return [uri for uri in names.values() if not resolves(site + uri, site, folder)]
