"The site as a reader meets it: opened from a folder, with the network off, on wide and narrow screens, in light and in dark."
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import house

SITE = house.ROOT / "_site"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
PAGES = ["index.html", "start.html", "00_theory.html", "06_objective.html", "22_cifar10.html", "api/sample.html", "api.html", "glossary.html"]


@pytest.fixture(scope="module")
def site():
    "The site, built as `make docs` does: outputs of the notebooks as they are committed"
    for package in ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "sphinx-mathjax-offline"):
        if not importlib.util.find_spec(package):
            pytest.skip("the site is not built here: make docs installs what it needs")
    env = {k: v for k, v in os.environ.items() if k != "GIT_URL"}
    done = subprocess.run([sys.executable, house.NBS / "site" / "build.py"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"the site does not build:\n{done.stdout}{done.stderr}"
    return SITE


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM or not importlib.util.find_spec("playwright"):
        pytest.skip("no browser to look with: pip install playwright, and Chromium on the PATH")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(site, chromium):
    "Open a page over file:// with the network off; what it asked for and what it complained about come with it"
    contexts = []

    def opened(name, width=1280, scheme="light"):
        contexts.append(chromium.new_context(viewport=dict(width=width, height=900), color_scheme=scheme, offline=True))
        page = contexts[-1].new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda r: page.asked.append(r.url))
        page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.complaints.append(str(e)))
        page.goto(f"file://{site}/{name}")
        page.evaluate("window.MathJax?.startup?.promise")
        return page
    yield opened
    for context in contexts:
        context.close()


class Links(HTMLParser):
    "The addresses a page names, and the places in it that can be named"

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.places.update(v for k, v in a.items() if k in ("id", "name"))
        self.links += [v for k, v in a.items() if k == "href" and tag == "a" and v]
        self.loads += [v for k, v in a.items() if (k == "src" or k == "href" and tag == "link" and a.get("rel") != "canonical") and v]


@pytest.fixture(scope="module")
def pages(site):
    return {p: Links(p) for p in sorted(site.rglob("*.html")) if "_static" not in p.parts}


def dead(page, address, pages):
    "Does a link within the site lead nowhere? Links to other sites are not followed"
    parts = urlsplit(address)
    if parts.scheme or parts.netloc: return False
    there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not there.exists(): return True
    return bool(parts.fragment) and there in pages and unquote(parts.fragment) not in pages[there].places


def test_no_link_leads_nowhere(pages):
    for page, found in pages.items():
        broken = sorted({a for a in found.links + found.loads if a != "#" and dead(page, a, pages)})
        assert not broken, f"{page.name} links {', '.join(broken[:5])}, which is not there"


def test_every_chapter_and_every_module_has_a_page(site):
    chapters = {"start" if p.stem == "index" else p.stem for p in house.chapters()}
    missing = [n for n in sorted(chapters) if not (site / f"{n}.html").exists()]
    missing += [f"api/{p.stem}" for p in house.LIB.glob("[a-z]*.py") if not (site / "api" / f"{p.stem}.html").exists()]
    assert not missing, f"no page for {', '.join(missing)}: is it in the README's tables?"


def test_a_reader_walks_the_road_by_next(pages, site):
    "The link Next leads from each chapter to the one after it, in the README's order"
    readme = (house.ROOT / "README.md").read_text(encoding="utf-8")
    road = re.findall(r"^\| \[[^\]]+\]\(nbs/(\w+)\.ipynb\)", readme, re.M)
    road = ["start" if n == "index" else n for n in road]
    for here, following in zip(road, road[1:]):
        text = (site / f"{here}.html").read_text(encoding="utf-8")
        got = re.search(r'class="next-page" href="([^"]*)"', text)
        assert got and got[1] == f"{following}.html", f"Next on {here} must lead to {following}, and leads to {got and got[1]}"


def test_a_page_loads_nothing_from_elsewhere(pages):
    for page, found in pages.items():
        far = [a for a in found.loads if urlsplit(a).netloc or urlsplit(a).scheme in ("http", "https")]
        assert not far, f"{page.name} would fetch {far[0]}: a page must not ask other sites for anything"


def test_pages_are_light(site, pages):
    "A page with its pictures, without what all pages share"
    for page, found in pages.items():
        pictures = {(page.parent / unquote(a)).resolve() for a in found.loads if not urlsplit(a).scheme and a.endswith((".png", ".jpg", ".jpeg"))}
        weight = (page.stat().st_size + sum(p.stat().st_size for p in pictures)) / 1e6
        assert weight < 2, f"{page.name} weighs {weight:.1f} MB with its pictures; 2 MB is the limit"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_works_without_a_network(visit, name):
    page = visit(name)
    far = [url for url in page.asked if not url.startswith(("file://", "data:", "blob:"))]
    assert not far, f"{name} asked for {far[0]}: it must work with the network off"
    assert not page.complaints, f"{name}: the browser's console says {page.complaints[0]!r}"


def test_formulas_are_drawn_without_a_network(visit):
    page = visit("00_theory.html")
    assert page.locator(".math mjx-container > svg").count() > 100, "the formulas of the theory must become drawings"
    left = page.locator(".math:not(:has(mjx-container > svg))")
    assert left.count() == 0, f"a formula still stands there as TeX: {left.first.inner_text()}"
    wrong = page.locator("[data-mml-node='merror'], mjx-container [fill='red']")
    assert wrong.count() == 0, f"MathJax does not understand a formula: {wrong.first.evaluate('e => e.outerHTML')[:300]}"


def test_search_finds_pushforward(visit):
    page = visit("index.html")
    page.locator("input[name=q]").first.fill("pushforward")
    page.locator("input[name=q]").first.press("Enter")
    page.wait_for_url("**/search.html?q=pushforward*")
    page.wait_for_function("/finished|did not match/.test(document.querySelector('#search-results').innerText)")
    found = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    for wanted in ("api/sample.html", "09_sample.html", "glossary.html"):
        assert any(wanted in a for a in found), f"the search for pushforward must find {wanted}; it found {found}"
    assert not page.complaints, f"the search complains: {page.complaints[0]!r}"


@pytest.mark.parametrize("width", [1280, 800, 390])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_sticks_out_of_the_page(visit, name, width):
    page = visit(name, width)
    reached = page.evaluate("document.documentElement.scrollWidth")
    assert reached <= width, f"{name} is {reached} wide on a screen of {width}: wide things must scroll in a frame of their own"


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_dark_is_dark(visit, scheme, dark):
    page = visit("00_theory.html", scheme=scheme)
    brightness = page.evaluate("""() => {
        const seen = e => getComputedStyle(e)[e === document.body ? "backgroundColor" : "color"].match(/[0-9.]+/g).slice(0, 3).map(Number);
        return [document.body, document.querySelector("article p")].map(e => seen(e).reduce((a, b) => a + b) / 3);
    }""")
    assert (brightness[0] < 64) == dark, f"the page's background has brightness {brightness[0]:.0f} of 255 in {scheme}"
    assert (brightness[1] > 160) == dark, f"the text has brightness {brightness[1]:.0f} of 255 in {scheme}"


def test_a_name_in_the_prose_leads_to_its_definition(visit):
    page = visit("03_precond.html")
    names = page.locator("article a.api-link", has_text=re.compile("^IMM$"))
    assert names.count(), "`IMM` in the prose must be a link to the reference"
    names.first.click()
    assert page.url.endswith("api/precond.html#imm_edu.precond.IMM")
    assert "largest time used" in page.locator("dl.py.class", has=page.locator("[id='imm_edu.precond.IMM']")).inner_text(), \
        "the comment behind a parameter must stand in its table"


def test_a_term_leads_to_the_glossary(visit):
    page = visit("09_sample.html")
    term = page.locator("article a.term-link", has_text="pushforward")
    assert term.count() == 1, "the first use of a term on a page, and no other, is linked"
    term.click()
    assert "glossary.html#term-pushforward" in page.url


def test_what_is_folded_opens(visit):
    page = visit("00_theory.html")
    solutions = page.locator("details", has_text="Show the solutions")
    assert not solutions.locator("pre").first.is_visible(), "a solution must not be read by accident"
    solutions.locator("summary").click()
    assert solutions.locator("pre").first.is_visible()


def test_doors_to_elsewhere_only_when_the_book_has_an_address(site, monkeypatch):
    monkeypatch.syspath_prepend(house.NBS / "site")
    import build
    notebook = house.NBS / "01_flow.ipynb"
    first = build.chapter(notebook, "https://github.com/someone/imm_edu", "main")["cells"][0]["source"]
    assert "(https://colab.research.google.com/github/someone/imm_edu/blob/main/nbs/01_flow.ipynb)" in first
    assert "(https://kaggle.com/kernels/welcome?src=https://github.com/someone/imm_edu/blob/main/nbs/01_flow.ipynb)" in first
    assert "Colab" not in build.chapter(notebook)["cells"][0]["source"], "without git_url there is nowhere to lead to"
