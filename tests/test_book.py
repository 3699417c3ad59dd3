"""The built book in a browser: every page of ``_build/html``, opened from a server of this machine.

A page is opened once; what was seen is kept as :class:`Visit`, and each test asks one thing of it.
Every check is also shown to fail, on a page that does everything wrong.
"""

from __future__ import annotations

import functools
import html
import http.server
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from gates import need
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from test_chapters import CHAPTERS, NUMBERED, OWN_PATH, ROOT, Document, claims

sys.path.insert(0, str(ROOT / "tools"))
import links  # a script's folder, not a package
import pages as edition

HTML = ROOT / "_build" / "html"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PAPER = {"width": 700, "height": 1000}  # A4 between its margins, in CSS pixels
# Chromium must not look for updates and the like: where there is no network, it waits for them.
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# sphinx-book-theme declares it twice on pages of notebooks; nothing depends on it.
UPSTREAM = re.compile(r"Identifier 'THEBE_JS_URL' has already been declared")

FACTS = r"""
() => {
  const article = document.querySelector(".bd-article") || document.body;
  const all = (query, where = document) => Array.from(where.querySelectorAll(query));
  const raw = [];
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest("pre, code, script, style, mjx-container")) continue;
    const found = node.data.match(/\$\$|\\\(|\\\[|\\begin\{|\$[^$\n]{1,60}\$/);
    if (found) raw.push(node.data.trim().slice(0, 80));
  }
  return {
    formulas: all(".math").length,
    unset: all(".math").filter(e => !e.querySelector("mjx-container")).map(e => e.textContent),
    errors: all("mjx-merror, [data-mjx-error]").map(e => e.textContent),
    raw: raw,
    dollars: all(".math").filter(e => /\$$/.test(e.previousSibling?.data || "")
      || /^\$/.test(e.nextSibling?.data || "")).map(e => e.textContent),
    images: all("img").map(e => ({
      alt: e.getAttribute("alt") || "", source: e.getAttribute("src").slice(0, 80),
      output: e.closest(".cell_output") !== null})),
    drawings: all(".cell_output svg")
      .filter(e => !e.getAttribute("aria-label") && !e.querySelector("title")).length,
    claims: all(".tl-claim").length,
    explorers: all(".tl-explorer").length,
    stderr: all(".cell_output .stderr, .cell_output .traceback").map(e => e.textContent.trim()),
    links: all("a[href]").map(e => e.href),
    text: article.textContent,
  };
}
"""
SHOWN = """
explorer => Array.from(explorer.querySelectorAll("img")).filter(e => e.checkVisibility())
  .map(e => [e.alt, e.src])
"""
OVERFLOW = """
() => {
  const root = document.documentElement;
  if (root.scrollWidth <= root.clientWidth) return [];
  const scrolls = e => e && (getComputedStyle(e).overflowX !== "visible" && e !== document.body
                             || scrolls(e.parentElement));
  const wide = e => e.scrollWidth > root.clientWidth
    || e.getBoundingClientRect().right > root.clientWidth + 0.5;
  return [`${root.scrollWidth} px wide`].concat(Array.from(document.querySelectorAll("body *"))
    .filter(e => wide(e) && !scrolls(e)).slice(-3)
    .map(e => `${e.tagName}.${e.className}: ${e.textContent}`.replace(/\\s+/g, " ").slice(0, 90)));
}
"""
LIGHTNESS = """
() => {
  const lightness = name => {
    const [r, g, b] = getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number);
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
  };
  return {theme: document.documentElement.dataset.theme || "",
          ground: lightness("backgroundColor"), ink: lightness("color")};
}
"""
# What of the screen is no use on paper, and is seen all the same.
ON_PAPER = """
() => Array.from(document.querySelectorAll(
    "nav, button, .tl-controls input, .bd-header-article, .bd-sidebar, .prev-next-footer"))
  .filter(e => e.checkVisibility({visibilityProperty: true}))
  .map(e => `on paper: ${e.tagName}.${e.className}`.slice(0, 90))
"""
# Of the words of a program the first of each colour stands for all, and of the names on the page of
# the API the first few of each kind, else these pages take minutes. Formulas have the ink of their
# paragraph, and a form for screen readers that is MathJax's. Colours must not be on their way.
THIN = """
() => {
  const style = document.createElement("style");
  style.textContent = "* { transition: none !important }";
  document.head.append(style);
  const kinds = {};
  for (const e of document.querySelectorAll("dl.py")) {
    kinds[e.className] = (kinds[e.className] || 0) + 1;
    if (kinds[e.className] > 5) e.remove();
  }
  const seen = new Set();
  for (const e of document.querySelectorAll(":is(.highlight pre, dt.sig, code) span[class]")) {
    const place = e.closest(".highlight, dt.sig, code").parentElement;
    const kind = [e.className, place.tagName, place.className].join(" ");
    if (seen.has(kind)) e.replaceWith(...e.childNodes); else seen.add(kind);
  }
  for (const e of document.querySelectorAll("mjx-container")) e.replaceWith("formula");
  document.body.normalize();
}
"""
AXE = Axe()
# What hinders nobody much is left to whoever looks at a page by hand.
SEVERE = ("serious", "critical")
# The rules that a change of colours can break.
COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}


@dataclass(frozen=True)
class Visit:
    """What was seen on a page.

    Attributes:
        address: where the page was opened.
        console: errors that it wrote to the console or threw.
        failed: requests of its own site that failed.
        outside: requests that it made to other sites; they were refused.
        facts: what the page consists of, see ``FACTS``.
        overflow: what is wider than a telephone; empty if nothing is.
        unmoved: what the keyboard does not move as it should in the figures with controls.
        paper: what is wider than a sheet of paper, or of no use on it.
        light, dark: theme, lightness of ground and ink (0 to 1), before and after the theme's
            button was pressed.
        barriers: by theme what keeps people out, as axe-core finds it.
    """

    address: str
    console: tuple[str, ...]
    failed: tuple[str, ...]
    outside: tuple[str, ...]
    facts: dict[str, Any]
    overflow: tuple[str, ...]
    unmoved: tuple[str, ...]
    paper: tuple[str, ...]
    light: dict[str, Any]
    dark: dict[str, Any]
    barriers: dict[str, list[str]]


def visit(browser: Browser, address: str) -> Visit:
    """Open a page, look at it on a desktop, in the dark, on a telephone and as printed."""
    origin = "/".join(address.split("/")[:3]) + "/"
    console: list[str] = []
    failed: list[str] = []
    outside: list[str] = []

    context = browser.new_context(viewport=DESKTOP, color_scheme="light")  # type: ignore[arg-type]
    page = context.new_page()
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("console", lambda m: console.append(m.text) if m.type == "error" else None)
    page.on("requestfailed", lambda r: failed.append(r.url) if r.url.startswith(origin) else None)
    page.on("response", lambda r: failed.append(f"{r.status} {r.url}") if r.status >= 400 else None)

    def refuse(route: Any) -> None:
        outside.append(route.request.url)
        route.abort()

    page.route(lambda url: not url.startswith((origin, "data:", "blob:")), refuse)
    try:
        page.goto(address, wait_until="load")
        page.evaluate("() => window.MathJax?.startup?.promise")
        facts = page.evaluate(FACTS)
        unmoved = move_controls(page)
        light = page.evaluate(LIGHTNESS)
        dark = press_theme_button(page)
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        overflow = page.evaluate(OVERFLOW)
        page.set_viewport_size(PAPER)  # type: ignore[arg-type]
        page.emulate_media(media="print")
        paper = page.evaluate(OVERFLOW) + page.evaluate(ON_PAPER)
        page.emulate_media(media="screen")
        page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
        barriers = find_barriers(page)
    finally:
        context.close()
    return Visit(
        address,
        tuple(console),
        tuple(failed),
        tuple(outside),
        facts,
        tuple(overflow),
        tuple(unmoved),
        tuple(paper),
        light,
        dark,
        barriers,
    )


def move_controls(page: Page) -> list[str]:
    """Move each control of each figure by keyboard; what does not change that should."""
    wrong = []
    for number, explorer in enumerate(page.locator(".tl-explorer").all(), 1):
        controls = explorer.locator("input[type=range], fieldset").all()
        if not controls:
            wrong.append(f"figure {number} has no control")
        for place, control in enumerate(controls, 1):
            name = f"figure {number}, control {place}"
            before, picture = explorer.evaluate(SHOWN), explorer.screenshot()
            chosen = control.locator("input:checked")
            (chosen if chosen.count() else control).focus()
            page.keyboard.press("ArrowRight")
            if explorer.evaluate(SHOWN) == before:  # it may stand at its right end
                page.keyboard.press("ArrowLeft")
            after = explorer.evaluate(SHOWN)
            if len(before) != 1 or len(after) != 1:
                wrong.append(f"{name}: {len(before)} and {len(after)} images are seen at a time")
            elif after[0][0] == before[0][0] or after[0][1] == before[0][1]:
                wrong.append(f"{name}: the figure or its alt text stays")
            elif explorer.screenshot() == picture:
                wrong.append(f"{name}: what is seen stays")
    return wrong


def press_theme_button(page: Page) -> dict[str, Any]:
    """Press the button until the page is dark, three times at most; what it looks like then."""
    seen: dict[str, Any] = page.evaluate(LIGHTNESS)
    buttons = page.locator("button.theme-switch-button:visible")
    for _ in range(3 if buttons.count() else 0):
        if seen["theme"] == "dark":
            break
        buttons.first.click()
        seen = page.evaluate(LIGHTNESS)
    return seen


def find_barriers(page: Page) -> dict[str, list[str]]:
    """What axe-core finds on a page that is open: rule, help and element, in both themes.

    Nothing can be looked at afterwards: most words of its programs lose their colours.
    """
    page.evaluate(THIN)
    found = {}
    for theme, options in (("dark", COLOURS), ("light", {})):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        options = {"resultTypes": ["violations"], "preload": False, **options}
        found[theme] = [
            f"{violation['impact']}, {violation['id']}: {violation['help']}: {node['html'][:150]}"
            for violation in AXE.run(page, options=options).response["violations"]
            for node in violation["nodes"]
            if violation["impact"] in SEVERE
        ]
    return found


# Checks: each returns what it finds wrong


def console_errors(seen: Visit) -> list[str]:
    # A request that was refused or failed writes an error too; it has checks of its own.
    return [
        text
        for text in seen.console
        if not UPSTREAM.search(text) and not text.startswith("Failed to load resource")
    ]


def failed_requests(seen: Visit) -> list[str]:
    return list(seen.failed)


def outside_requests(seen: Visit) -> list[str]:
    return list(seen.outside)


def mathematics(seen: Visit) -> list[str]:
    return [
        *(f"not set: {text}" for text in seen.facts["unset"]),
        *(f"set with an error: {text}" for text in seen.facts["errors"]),
        *(f"in the text as it was typed: {text}" for text in seen.facts["raw"]),
        *(f"with a dollar beside it: {text}" for text in seen.facts["dollars"]),
    ]


def alternative_texts(seen: Visit) -> list[str]:
    found = []
    for image in seen.facts["images"]:
        # Where there is no alt text the build writes the image's path.
        words = [] if re.search(r"\.(png|svg|jpe?g)$", image["alt"]) else image["alt"].split()
        if len(words) < (5 if image["output"] else 1):
            found.append(f"{image['source']} has the alt text {image['alt']!r}")
    if count := seen.facts["drawings"]:
        found.append(f"{count} drawings (svg) have neither aria-label nor title")
    return found


def phone_width(seen: Visit) -> list[str]:
    return list(seen.overflow)


def figures_with_controls(seen: Visit) -> list[str]:
    return list(seen.unmoved)


def dark_mode(seen: Visit) -> list[str]:
    found = []
    if not seen.light["ground"] > seen.light["ink"]:
        found.append(f"the page is not light at first: {seen.light}")
    if not (seen.dark["theme"] == "dark" and seen.dark["ground"] < 0.3 < 0.6 < seen.dark["ink"]):
        found.append(f"the button does not make it dark: {seen.dark}")
    return found


def paper(seen: Visit) -> list[str]:
    return list(seen.paper)


def barriers_light(seen: Visit) -> list[str]:
    return seen.barriers["light"]


def barriers_dark(seen: Visit) -> list[str]:
    return seen.barriers["dark"]


def program_errors(seen: Visit) -> list[str]:
    return [text[:200] for text in seen.facts["stderr"]]


def paths_of_machines(seen: Visit) -> list[str]:
    return [match[0] for match in OWN_PATH.finditer(seen.facts["text"])]


CHECKS: dict[str, Callable[[Visit], list[str]]] = {
    function.__name__: function
    for function in (
        console_errors,
        failed_requests,
        outside_requests,
        mathematics,
        alternative_texts,
        phone_width,
        figures_with_controls,
        dark_mode,
        paper,
        barriers_light,
        barriers_dark,
        program_errors,
        paths_of_machines,
    )
}


# The book


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: failed requests are seen from the page."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True  # a connection that Chromium keeps open does not hold up the end


def serve(folder: Path) -> tuple[Server, str]:
    """A server of a folder, on a free port, and its address."""
    server = Server(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


@pytest.fixture(scope="module")
def browser(chromium_path: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def built() -> None:
    """Skips or fails where there is no built book."""
    need(
        "browser",
        (HTML / "chapters" / "index.html").is_file(),
        "There is no built book in _build/html: run `make book` first.",
    )


@pytest.fixture(scope="module")
def look(browser: Browser, built: None) -> Iterator[Callable[[str], Visit]]:
    """A function from the name of a page to its visit; each page is opened once."""
    server, address = serve(HTML)
    yield functools.cache(lambda page: visit(browser, address + page))
    server.shutdown()
    server.server_close()


SOURCES = "_modules/tlhelpers/"


def pages() -> list[str]:
    """The built pages; the landing page stands for all where nothing is built.

    The page at the root only leads on to the landing page, and page 404 has a test of its own. The
    source of a module is shown by a page that nobody wrote: the first two stand for the others.
    """
    found = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
    apart = ["index.html", "404.html", *[page for page in found if page.startswith(SOURCES)][2:]]
    shown = [page for page in found if page not in apart and not page.startswith("_static/")]
    return shown or ["chapters/index.html"]


def landing() -> str:
    return (HTML / "chapters/index.html").read_text("utf-8")


def chapter_pages() -> list[str]:
    """The pages that are made from notebooks, from the folder of the notebooks."""
    return [f"chapters/{path.stem}.html" for path in sorted(CHAPTERS.glob("*.ipynb"))]


@pytest.mark.parametrize("page", pages())
@pytest.mark.parametrize("name", CHECKS)
def test_page(name: str, page: str, look: Callable[[str], Visit]) -> None:
    found = CHECKS[name](look(page))
    assert not found, "\n".join([f"{page}:", *found])


def test_every_page_of_the_contents_was_built(look: Callable[[str], Visit]) -> None:
    sources = [path for path in CHAPTERS.iterdir() if path.suffix in (".ipynb", ".md")]
    wanted = {f"chapters/{path.stem}.html" for path in sources}
    assert wanted <= set(pages())


def test_the_root_leads_to_the_landing_page(browser: Browser, look: Callable[[str], Visit]) -> None:
    landing = look("chapters/index.html").address
    page = browser.new_page()
    page.goto(landing.removesuffix("chapters/index.html"))
    page.wait_for_url("**/chapters/index.html")
    page.close()


@pytest.mark.parametrize("page", ["index", "ledger"])
def test_the_map_and_the_ledger_name_every_chapter(page: str) -> None:
    built = HTML / "chapters" / f"{page}.html"
    text = html.unescape(re.sub(r"<[^>]+>", "", built.read_text("utf-8").split("<article", 1)[1]))
    text = text.replace("’", "'")  # as the build sets an apostrophe
    for path in NUMBERED:
        _, title = Document.read(path).headings[0]
        assert title in text, f"{page} does not name {path.name} by its title"


def test_some_page_has_mathematics(look: Callable[[str], Visit]) -> None:
    # Else the check of the mathematics would have looked at nothing.
    assert sum(look(page).facts["formulas"] for page in pages()) > 0


def test_some_page_has_a_figure_with_controls(look: Callable[[str], Visit]) -> None:
    # Else no control would have been moved.
    assert sum(look(page).facts["explorers"] for page in chapter_pages()) > 0


def test_links_within_the_book_lead_somewhere(built: None) -> None:
    assert links.dead_ends(HTML) == []


def test_every_reference_is_cited_and_every_citation_listed(built: None) -> None:
    listed = set(
        re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "references.bib").read_text("utf-8"), re.M)
    )
    cited = set()
    for path in CHAPTERS.iterdir():
        if path.suffix in (".ipynb", ".md"):
            for keys in re.findall(r"\{cite:\w+\}`([^`]+)`", path.read_text("utf-8")):
                cited |= {key.strip() for key in keys.split(",")}
    assert cited == listed
    page = (HTML / "chapters/references.html").read_text("utf-8")
    assert len(re.findall(r'class="citation" id="\w+" role="listitem"', page)) == len(listed)


def test_every_page_of_the_contents_carries_one_edition(built: None) -> None:
    sources = [path for path in CHAPTERS.iterdir() if path.suffix in (".ipynb", ".md")]
    found = set()
    for path in sources:
        text = (HTML / f"chapters/{path.stem}.html").read_text("utf-8")
        stamps = re.findall(r'</h1>\s*<p class="tl-edition">(.*?)</p>', text)
        assert len(stamps) == 1, path.name
        found.add(html.unescape(stamps[0]))
    (stamp,) = found
    now = edition.edition()
    assert stamp.startswith(f"Edition {now.version} · ")
    assert stamp.endswith(f" · torch {now.torch}")
    if now.commit:
        assert re.search(r" · 20\d\d-\d\d-\d\d · commit [0-9a-f]{7,}", stamp)


@pytest.mark.parametrize("page", ["chapters/index", "chapters/05-fine-tuning", "chapters/glossary"])
def test_a_link_to_a_page_is_shown_with_title_description_and_picture(
    page: str, built: None
) -> None:
    text = (HTML / f"{page}.html").read_text("utf-8")
    said = dict(re.findall(r'<meta (?:name|property)="([\w:]+)" content="([^"]*)"', text))
    assert f"<h1>{said['og:title']}<" in text
    assert said["og:url"].endswith(f"{page}.html")
    assert len(said["description"].split()) > 5
    image = said["og:image"].removeprefix(said["og:url"].removesuffix(f"{page}.html"))
    assert Image.open(HTML / image).size == (1200, 630)


def test_the_search_finds_the_definition_first_then_chapters(
    browser: Browser, look: Callable[[str], Visit]
) -> None:
    address = look("chapters/index.html").address.removesuffix("chapters/index.html")
    page = browser.new_page()
    page.goto(f"{address}search.html?q=negative+transfer")
    page.get_by_text("Search finished").wait_for()
    found = page.locator("#search-results li > a").all_inner_texts()
    page.close()
    assert found[0] == "Glossary > negative transfer"
    chapters = [text for text in found if re.match(r"\d\d · ", text)]
    assert any(text.startswith("14 · ") for text in chapters)
    assert found.index("References") > found.index(chapters[-1])


def test_the_page_for_a_missing_address_leads_back_from_any_depth(
    browser: Browser, built: None
) -> None:
    text = (HTML / "404.html").read_text("utf-8")
    page = browser.new_page(viewport=PHONE)  # type: ignore[arg-type]
    page.route("**/*", lambda route: route.fulfill(body=text, content_type="text/html", status=404))
    page.goto("http://127.0.0.1:9/some/deep/address.html")
    (home,) = re.findall(r'rel="canonical" href="(.*)chapters/index.html"', landing())
    for link in page.evaluate("Array.from(document.links, link => link.href)"):
        assert (HTML / link.removeprefix(home)).is_file(), link
    assert page.locator("form").get_attribute("action") == f"{home}search.html"
    assert page.evaluate(OVERFLOW) == []
    assert find_barriers(page) == {"dark": [], "light": []}
    page.close()


def test_a_dark_page_is_printed_in_the_light_theme(
    browser: Browser, look: Callable[[str], Visit]
) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(look("chapters/index.html").address)
    themes = [page.evaluate(LIGHTNESS)["theme"]]
    for event in ("beforeprint", "afterprint"):
        page.evaluate("name => { dispatchEvent(new Event(name)) }", event)
        themes.append(page.evaluate(LIGHTNESS)["theme"])
    assert themes == ["dark", "light", "dark"]
    page.close()


def test_the_network_is_loaded_by_one_page_alone(look: Callable[[str], Visit]) -> None:
    assert look("chapters/try-it.html").failed == ()
    loading = [page for page in pages() if "_static/try-it/" in (HTML / page).read_text("utf-8")]
    assert loading == ["chapters/try-it.html"]
    assert (HTML / "_static/try-it/weights.js").is_file()


def colab_start() -> str:
    setting = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    project = setting["url"].removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{project}/blob/{setting['branch']}/"


@pytest.mark.parametrize("page", pages())
def test_colab_buttons_open_a_notebook(page: str, look: Callable[[str], Visit]) -> None:
    links = [link for link in look(page).facts["links"] if "colab.research" in link]
    for link in links:
        assert link.startswith(colab_start())
        notebook = ROOT / link.removeprefix(colab_start())
        assert notebook.is_file()
        assert notebook.suffix == ".ipynb"
    if page in chapter_pages():
        assert colab_start() + page.removesuffix(".html") + ".ipynb" in links


@pytest.mark.parametrize("page", chapter_pages())
def test_pages_show_every_claim(page: str, look: Callable[[str], Visit]) -> None:
    source = Document.read((ROOT / page).with_suffix(".ipynb"))
    wanted = sum(len(list(claims(cell.source))) for cell in source.code)
    assert look(page).facts["claims"] == wanted


# The checks themselves

WRONG = """<!doctype html><html><head><title>Wrong</title>
<link rel="stylesheet" href="http://elsewhere.invalid/style.css"></head>
<body style="background: white; color: black">
<script>console.error("something broke"); undefinedFunction();</script>
<img src="missing.png"><div class="cell_output"><img src="data:," alt="_images/figure.png">
<img src="data:," alt="A curve"><svg></svg><pre class="stderr">Warning!</pre></div>
<span class="math">\\(x\\)</span>
$<span class="math"><mjx-container><mjx-merror>Misplaced &</mjx-merror></mjx-container></span>
and $$y$$ in /home/somebody/book
<div class="tl-explorer"><input type="range" aria-label="x"><img src="data:," alt="Still"></div>
<div class="tl-explorer"></div> <button>Menu</button>
<p style="color: #ccc">pale</p><input>
<div style="width: 900px">wide</div></body></html>"""

RIGHT = """<!doctype html><html lang="en"><head><title>Right</title>
<style>@media print { button { display: none } }</style></head>
<body style="background: white; color: black"><script>
function toggle() { document.documentElement.dataset.theme = "dark";
document.body.style.background = "#111"; document.body.style.color = "#eee"; }</script>
<button class="theme-switch-button" onclick="toggle()">dark</button>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=" alt="Logo">
<span class="math"><mjx-container>x</mjx-container></span> costs $5 <code>$$</code>
<svg></svg><div class="tl-explorer">
<input type="range" aria-label="which" max="1" value="1" oninput="
const [one, two] = document.querySelectorAll('.tl-explorer img');
two.hidden = value === '0'; one.hidden = value === '1'">
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=" alt="First" hidden width="9">
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=#" alt="Second" width="90">
</div></body></html>"""

FOUND = {
    "console_errors": ["something broke", "undefinedFunction is not defined"],
    "failed_requests": [r"404 .*/missing\.png"],
    "outside_requests": [r"http://elsewhere\.invalid/style\.css"],
    "mathematics": [
        r"not set: \\\(x\\\)",
        "Misplaced &",
        "as it was typed",
        "as it was typed",
        "beside it",
    ],
    "alternative_texts": ["missing.png", "figure.png", "A curve", "1 drawings"],
    "phone_width": [r"9\d\d px wide", "DIV"],
    "figures_with_controls": ["figure 1, control 1: .* stays", "figure 2 has no control"],
    "dark_mode": ["does not make it dark"],
    "paper": [r"9\d\d px wide", "DIV", "on paper: BUTTON"],
    "barriers_light": [
        "color-contrast.*pale",
        "html-has-lang",
        "image-alt.*missing",
        "label.*input",
    ],
    "barriers_dark": ["color-contrast.*pale"],
    "program_errors": ["Warning!"],
    "paths_of_machines": ["/home/"],
}


@pytest.fixture(scope="module")
def samples(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Visit]]:
    folder = tmp_path_factory.mktemp("samples")
    server, address = serve(folder)
    seen = {}
    for name, content in (("wrong", WRONG), ("right", RIGHT)):
        (folder / f"{name}.html").write_text(content, "utf-8")
        seen[name] = visit(browser, f"{address}{name}.html")
    yield seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", CHECKS)
def test_check_finds_what_it_is_for(name: str, samples: dict[str, Visit]) -> None:
    found = CHECKS[name](samples["wrong"])
    assert len(found) == len(FOUND[name]), found
    for text, pattern in zip(found, FOUND[name], strict=True):
        assert re.search(pattern, text), found


@pytest.mark.parametrize("name", CHECKS)
def test_check_leaves_what_is_right(name: str, samples: dict[str, Visit]) -> None:
    assert CHECKS[name](samples["right"]) == []
