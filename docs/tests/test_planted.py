"""The checks find faults planted into a copy of the site, and find each where it belongs."""

from __future__ import annotations

import shutil

import pytest
from browser import DESKTOP, PHONE, SITE, served

import checks
from tests.test_docs import public_modules

FAULTS = {
    "none": ("", set()),
    "console error": ("<script>console.error('planted')</script>", {"load"}),
    "script error": ("<script>planted()</script>", {"load"}),
    "missing script": ("<script src='nowhere.js'></script>", {"load"}),
    "foreign script": ("<script src='https://example.org/planted.js'></script>", {"load"}),
    "foreign style": ("<style>@import url('https://example.org/planted.css');</style>", {"load"}),
    "link to no file": ("<a href='nowhere.html'>planted</a>", {"broken_links"}),
    "link to no anchor": ("<a href='changelog.html#nowhere'>planted</a>", {"broken_links"}),
    "link to no anchor here": ("<a href='#nowhere'>planted</a>", {"broken_links"}),
    "link from the root": ("<a href='/index.html'>planted</a>", {"broken_links"}),
    "missing image": ("<img src='nowhere.png'>", {"load", "broken_images"}),
    "missing image below": ("<img src='nowhere.png' loading='lazy' style='margin-top: 9999px'>", {"broken_images"}),
    "damaged image": ("<img src='objects.inv'>", {"broken_images"}),
    "wrong formula": (r"<p class='math'>\(\frac{x}\)</p>", {"bad_formulas"}),
    "unknown macro": (r"<p class='math'>\(\planted{x}\)</p>", {"bad_formulas"}),
    "unclosed formula": (r"<p class='math'>\(x</p>", {"bad_formulas"}),
    "raw formula": ("<p class='mathjax_ignore'>Then $$x$$ holds.</p>", {"bad_formulas"}),
    "no MathJax": ("<script>Object.defineProperty(window, 'MathJax', {})</script>", {"load", "bad_formulas"}),
    "wide block": ("<div style='width: 600px'>planted</div>", {"too_wide"}),
    "long word": (f"<p>{'planted' * 20}</p><style>article p {{ overflow-wrap: normal }}</style>", {"too_wide"}),
    "small text": ("<p style='font-size: 9px'>planted</p>", {"small_texts"}),
    "white page": ("<style>article { background: white }</style>", {"pale_background", "faint_texts"}),
    "grey text": ("<p style='color: #666'>planted</p>", {"faint_texts"}),
    "grey code": ("<pre style='background: #eee; color: #aaa'>planted</pre>", {"faint_texts"}),
    "figure without paper": (
        "<img src='_static/file.png'><style>.content article img { background: none !important }</style>",
        {"figures_without_paper"},
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = shutil.copytree(SITE, tmp_path_factory.mktemp("planted") / "html")
    with served(folder) as url:
        yield url, folder


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(page, copy, name):
    """In a page of its own, since the browser keeps pages, and the checks keep their anchors."""
    url, folder = copy
    fault, expected = FAULTS[name]
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "</article>" in text
    file = f"planted-{name.replace(' ', '-')}.html"
    (folder / file).write_text(text.replace("</article>", fault + "</article>"), encoding="utf-8")
    wide = [checks.broken_images, checks.bad_formulas]
    phone = [checks.too_wide, checks.small_texts]
    dark = [checks.pale_background, checks.faint_texts, checks.figures_without_paper]
    problems = {"load": checks.load(page, url + file), "broken_links": checks.broken_links(page, url, folder)}
    for size, scheme, several in ((DESKTOP, "light", wide), (PHONE, "light", phone), (DESKTOP, "dark", dark)):
        checks.view(page, size, scheme)
        problems.update({check.__name__: check(page) for check in several})
    assert {check for check, found in problems.items() if found} == expected, problems


def test_names_without_a_target_are_found(site):
    names = checks.targets(SITE)
    del names["ncml.noise.sde.VPSDE"]
    assert "ncml.VPSDE" in checks.missing_names(names, public_modules())
    assert checks.dead_targets({"ncml.VPSDE": "changelog.html#ncml.VPSDE"}, site, SITE) == ["changelog.html#ncml.VPSDE"]
