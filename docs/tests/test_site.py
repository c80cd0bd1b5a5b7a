"""The built site, as a visitor's browser shows it."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, SITE
from playwright.sync_api import expect

import checks
import ncml
from tests.test_docs import public_modules

DOCS = SITE.parents[1]
VPSDE = f"{ncml.VPSDE.__module__}.VPSDE"
PAGES = sorted(str(file.relative_to(SITE)) for file in SITE.rglob("*.html") if "_static" not in file.parts)


def assert_none(problems):
    """All of them, which pytest would cut."""
    __tracebackhide__ = True
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="module", params=PAGES)
def opened(request, page, site):
    """Each page in turn, open, and what went wrong on the way; pytest runs all that use it before the next."""
    return page, checks.load(page, site + request.param)


def test_page_loads(opened):
    assert_none(opened[1])


def test_links_lead_somewhere(opened, site):
    assert_none(checks.broken_links(opened[0], site, SITE))


def test_images_load(opened):
    assert_none(checks.broken_images(opened[0]))


def test_formulas_are_set(opened):
    assert_none(checks.bad_formulas(opened[0]))


def test_page_is_readable(opened):
    checks.view(opened[0], DESKTOP)
    assert_none(checks.faint_texts(opened[0]))


def test_page_is_readable_on_a_phone(opened):
    checks.view(opened[0], PHONE)
    assert_none(checks.too_wide(opened[0]))
    assert_none(checks.small_texts(opened[0]))


def test_page_is_readable_in_the_dark(opened):
    checks.view(opened[0], DESKTOP, "dark")
    assert_none(checks.pale_background(opened[0]))
    assert_none(checks.faint_texts(opened[0]))
    assert_none(checks.figures_without_paper(opened[0]))


def test_every_page_has_a_source():
    """Sphinx leaves a page in the folder whose source is gone; remove docs/_build/html then."""
    files = [file.relative_to(DOCS) for file in DOCS.rglob("*.md")]
    programs = (DOCS.parent / "examples" / "gallery").glob("*.py")
    files += [Path("gallery/index.html"), *(Path("gallery", program.name) for program in programs)]
    generated = {"genindex.html", "py-modindex.html", "search.html"}
    assert_none(sorted(set(PAGES) - generated - {str(file.with_suffix(".html")) for file in files}))


def test_method_shows_every_formula_of_its_source(page, site):
    checks.load(page, site + "understand/method.html")
    source = (DOCS / "understand/method.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$|`[^`]*`", "", source, flags=re.MULTILINE | re.DOTALL)
    displayed, rest = re.findall(r"\$\$.+?\$\$", prose, re.DOTALL), re.sub(r"\$\$.+?\$\$", "", prose, flags=re.DOTALL)
    inline = re.findall(r"\$[^$]+\$", rest)
    assert page.locator("article mjx-container[display]").count() >= len(displayed) > 0
    assert page.locator("article mjx-container:not([display])").count() >= len(inline) > 0


def test_every_public_name_is_a_target(site):
    names = checks.targets(SITE)
    assert_none(checks.missing_names(names, public_modules()))
    assert_none(checks.dead_targets(names, site, SITE))


def test_search_finds_a_class(fresh, site):
    page = fresh()
    page.goto(site)
    box = page.get_by_placeholder("Search", exact=True)
    box.fill("VPSDE")
    box.press("Enter")
    target = site + checks.targets(SITE)[VPSDE]
    result = page.locator("#search-results a", has_text="VPSDE").first
    result.click()
    expect(page).to_have_url(re.compile(re.escape(target)))


def copied(page, block):
    """What a visitor gets who clicks on the button of a block of code."""
    block.hover()
    block.locator("button.copybtn").click()
    expect(block.locator("button.copybtn")).to_have_attribute("data-tooltip", "Copied!")
    return page.evaluate("navigator.clipboard.readText()")


def test_code_is_copied(fresh, site):
    page = fresh(permissions=["clipboard-read", "clipboard-write"])
    page.goto(site)
    (code, *_) = re.findall(
        r"^```python\n(.*?)\n```$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert copied(page, page.locator(".highlight-python .highlight").first) == code


def test_an_example_is_copied_without_prompts_and_output(fresh, site):
    page = fresh(permissions=["clipboard-read", "clipboard-write"])
    page.goto(site + checks.targets(SITE)[VPSDE])
    block = page.locator(f"dl.class:has([id='{VPSDE}']) .doctest .highlight").first
    examples = doctest.DocTestParser().get_examples(ncml.VPSDE.__doc__)
    assert copied(page, block) == "".join(example.source for example in examples).rstrip("\n")


def test_navigation_opens_on_a_phone(fresh, site):
    page = fresh(viewport=PHONE, is_mobile=True, has_touch=True)
    page.goto(site)
    link = page.locator(".sidebar-tree a.internal").first
    expect(link).not_to_be_in_viewport()
    page.locator(".mobile-header label[for=__navigation]").tap()
    expect(link).to_be_in_viewport()
    title = link.inner_text()
    link.tap()
    expect(page.locator("article h1")).to_contain_text(title)
