"""The book in other forms: ``python tools/ebook.py epub`` or ``pdf``.

Both take the executed chapters of ``make book`` and execute nothing anew.

- EPUB: Sphinx's own, with formulas as MathML and every page turned into well-formed XHTML, which
  outputs of notebooks often are not, and which readers insist on.
- PDF: all pages as one, printed by Chromium.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import html
import http.server
import posixpath
import re
import shutil
import sys
import tempfile
import threading
import urllib.parse
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import book

NAME = "transfer-learning"
EPUB = book.BUILD / f"{NAME}.epub"
PDF = book.BUILD / f"{NAME}.pdf"
_OPF = "{http://www.idpf.org/2007/opf}"
MIMETYPE = "mimetype"  # EPUB's first file, which must not be compressed
PRINT_TIMEOUT = 600_000  # milliseconds: a thousand formulas are set before the page is printed

# On paper: type as small as a book's, a chapter on a page of its own, no line of code cut off. A
# box that scrolls is printed as one piece, which leaves half of a page empty before it.
PAPER = """
html { font-size: 11px; }
.tl-title { break-after: page; padding-top: 60mm; text-align: center; line-height: 2; }
.tl-title strong { font-size: 28px; display: block; }
span[id^="document-"] + section { break-before: page; }
h1, h2, h3, h4, h5, dt, .rubric { break-after: avoid; }
p, pre { orphans: 3; widows: 3; }
pre, div[class*="highlight"], .cell, .cell_input, .cell_output, .output,
.pst-scrollable-table-container {
  overflow: visible !important;
}
pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
img, tr, .cell_input, .sd-col, .tl-claim, .tl-record { break-inside: avoid; }
a.headerlink, button, noscript, details.hide > summary { display: none !important; }
"""
# In a reader of EPUBs, whose screen is narrow.
SCREEN = """
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
"""

PAGE_NUMBER = """
<p style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></p>
"""

# Opens what is folded, and turns addresses on this machine into links within the document. The
# captions in the list of contents are no headings of the book's.
PREPARE = """front => {
  const title = document.createElement("div");
  title.className = "tl-title";
  title.innerHTML = front;
  document.body.prepend(title);
  document.querySelectorAll("details").forEach(e => { e.open = true; });
  document.querySelectorAll("p.caption[role=heading]").forEach(e => { e.removeAttribute("role"); });
  for (const link of document.querySelectorAll("a[href]")) {
    const address = new URL(link.href);
    if (address.origin !== location.origin) continue;
    const target = decodeURIComponent(address.hash.slice(1));
    if (target && document.getElementById(target)) link.setAttribute("href", address.hash);
    else link.removeAttribute("href");
  }
}"""

# --- building -----------------------------------------------------------------------------


def build(form: str, options: Sequence[str], change: Callable[[dict[str, Any]], None]) -> Path:
    """Run jupyter-book with a changed configuration; the folder of its result.

    Raises:
        SystemExit: if the book has not been built, or the build fails.
    """
    import yaml

    if not book.read_state().get("complete"):
        raise SystemExit("The book has to be built first: make book")
    folder = book.BUILD / form
    book.remove(folder)
    folder.mkdir(parents=True)
    config = book.configuration()
    config["sphinx"]["config"]["version"] = config["sphinx"]["config"]["release"] = version()
    # Values of constants, some of which would fill pages.
    config["sphinx"]["config"]["autodoc_default_options"]["no-value"] = True
    change(config)
    path = folder / "_config.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    common = ["--path-output", str(folder), "--config", str(path)]
    if status := book.jupyter_book([*common, "--toc", str(book.ROOT / "_toc.yml"), *options]):
        raise SystemExit(status)
    return folder / "_build"


def version() -> str:
    """The edition."""
    import chapter

    return chapter.version()


def without_buttons(config: dict[str, Any]) -> None:
    """What leads from a page to its notebook has no place on paper, and fails in an EPUB."""
    config.pop("launch_buttons", None)
    config.pop("repository", None)
    for name in ("use_repository_button", "use_issues_button"):
        config["html"].pop(name, None)


# --- EPUB ---------------------------------------------------------------------------------


def epub() -> int:
    """Write the EPUB, and look for what keeps it from being read; the exit status."""

    def change(config: dict[str, Any]) -> None:
        without_buttons(config)
        config["sphinx"]["local_extensions"]["mathml"] = str(book.ROOT / "tools")
        config["sphinx"]["config"] |= {
            "html_math_renderer": "mathml",
            "html_static_path": [],  # MathJax: no reader of EPUBs runs it
            "html_css_files": [],
            "html_js_files": [],
            "epub_basename": NAME,
            "epub_title": config["title"],
            "epub_show_urls": "no",
            "epub_exclude_files": ["search.html"],
        }

    built = build("epub", ["--builder", "custom", "--custom-builder", "epub"], change)
    repack(built / "epub" / f"{NAME}.epub", EPUB)
    broken = faults(EPUB)
    for sentence in broken:
        print(sentence, file=sys.stderr)
    print(f"The book: {book.relative(EPUB)}, {EPUB.stat().st_size / 1e6:.1f} MB.")
    return 1 if broken else 0


def repack(source: Path, target: Path) -> None:
    """Copy an EPUB with its pages made well-formed; the target is there whole or not at all."""
    unfinished = target.with_suffix(".part")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(unfinished, "w") as new:
        names = old.namelist()
        pages = {
            name: well_formed(old.read(name).decode("utf-8"), name=name, names=names)
            for name in names
            if name.endswith(".xhtml")
        }
        formulas = {name for name, page in pages.items() if "<math" in page}
        new.writestr(MIMETYPE, old.read(MIMETYPE), zipfile.ZIP_STORED)
        for name in names:
            content = pages[name].encode("utf-8") if name in pages else old.read(name)
            if name.endswith(".opf"):
                content = declared(content.decode("utf-8"), formulas).encode("utf-8")
            if name != MIMETYPE:
                new.writestr(name, content, zipfile.ZIP_DEFLATED)
    unfinished.replace(target)


# Of a figure with controls, what needs a script: an e-book shows the first figure, what was chosen
# for it, and all the numbers.
MOVING = (
    ".tl-frame[hidden], .tl-heard, .tl-explorer noscript, "
    ".tl-explorer label:has(> input[type=radio]:not([checked])), .tl-explorer input"
)


def declared(manifest: str, formulas: Collection[str]) -> str:
    """The manifest, with the pages marked that hold MathML, as EPUB asks for."""

    def mark(item: re.Match[str]) -> str:
        return f'{item[0]} properties="mathml"' if item[1] in formulas else item[0]

    return re.sub(r'<item\b[^>]*?\bhref="([^"]+)"', mark, manifest)


def well_formed(page: str, *, name: str = "", names: Collection[str] = ()) -> str:
    """A page of HTML as XML of the kind that EPUB allows.

    Every element is closed, every attribute quoted, no entity named. What Jupyter and docutils
    write and EPUB's schema refuses is left out, or said in another way.

    Args:
        page: the page.
        name: its name in the book.
        names: all names in the book: links to other style sheets are dropped.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    for gone in (*soup.select("script, body style, summary svg"), *soup.select(MOVING)):
        gone.decompose()
    for link in soup.select("link[rel=stylesheet]"):
        if within(name, str(link["href"])) not in names:
            link.decompose()
    # "Show" and "Hide", of which a style sheet of the book's shows one.
    for paragraph in soup.select("summary p"):
        paragraph.name = "span"
        if "expanded" in paragraph.get_attribute_list("class"):
            paragraph.decompose()
    for paragraph in soup.select("p:has(> p, > ul, > ol)"):  # Sphinx's, of what is returned
        paragraph.name = "div"
    if soup.head:
        style = soup.new_tag("style")
        style.string = SCREEN
        soup.head.append(style)
    for cell in soup.select("table, tr, th, td"):
        for attribute in ("valign", "halign", "border"):
            del cell[attribute]
    for fraction in soup.select("mfrac[displaystyle], mfrac[scriptlevel]"):
        around = soup.new_tag("mstyle")
        for attribute in ("displaystyle", "scriptlevel"):
            if attribute in fraction.attrs:
                around[attribute] = fraction.attrs.pop(attribute)
        fraction.wrap(around)
    return soup.decode(formatter="minimal")


def faults(path: Path) -> list[str]:
    """What keeps an EPUB from being read anywhere, offline; a sentence each.

    Pages that are not XML; files that the manifest does not name, or names in vain; pictures,
    styles or scripts from elsewhere; links within the book that lead nowhere.
    """
    found: list[str] = []
    pages: dict[str, ElementTree.Element] = {}
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        for name in sorted(names):
            if name.endswith((".xhtml", ".opf", ".ncx", ".xml")):
                try:
                    pages[name] = ElementTree.fromstring(archive.read(name))
                except ElementTree.ParseError as error:
                    found.append(f"{name} is not well-formed: {error}.")
    for name in [name for name in pages if name.endswith(".opf")]:
        listed = {within(name, item.get("href", "")) for item in pages[name].iter(f"{_OPF}item")}
        there = {one for one in names if one not in (MIMETYPE, name) and "META-INF/" not in one}
        found += [f"{one} is not in the manifest." for one in sorted(there - listed)]
        found += [
            f"{one} is in the manifest, and not in the book." for one in sorted(listed - there)
        ]
    ids = {name: {element.get("id") for element in page.iter()} for name, page in pages.items()}
    for name in [name for name in pages if name.endswith(".xhtml")]:
        for element in pages[name].iter():
            tag, address = element.tag.rpartition("}")[2], element.get("src") or element.get("href")
            if not address or address.startswith("data:"):
                continue
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or parts.netloc:
                if tag != "a":
                    found.append(f"{name} needs {address}, which is not in the book.")
                continue
            target = within(name, parts.path) if parts.path else name
            anchor = urllib.parse.unquote(parts.fragment)
            if target not in names or (anchor and target in ids and anchor not in ids[target]):
                found.append(f"{name} leads to {address}, which is not in the book.")
    return found


def within(page: str, address: str) -> str:
    """The name in an archive to which an address on a page of it leads."""
    folder = posixpath.dirname(page)
    return posixpath.normpath(posixpath.join(folder, urllib.parse.unquote(address)))


# --- PDF ----------------------------------------------------------------------------------


def pdf() -> int:
    """Print all pages as one; the exit status."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("A PDF needs Chromium on the PATH (Debian: apt install chromium).", file=sys.stderr)
        return 1
    pages = build("singlehtml", ["--builder", "singlehtml"], without_buttons) / "singlehtml"
    # It is written beside the first page, and its addresses are those of the folder above.
    shutil.copy(pages / "chapters" / "index.html", pages / "all.html")
    with sync_playwright() as playwright:
        print_page(playwright.chromium, chromium, pages / "all.html", PDF, title_page())
    print(f"The book: {book.relative(PDF)}, {PDF.stat().st_size / 1e6:.1f} MB.")
    return 0


def title_page() -> str:
    """What stands on the first page, as HTML."""
    import yaml

    config = yaml.safe_load((book.ROOT / "_config.yml").read_text("utf-8"))
    lines = [
        f"<strong>{html.escape(config['title'])}</strong>",
        html.escape(config["author"]),
        f"Edition {version()}, {datetime.date.today():%B %Y}",
        config["html"]["extra_footer"],
    ]
    return "<br>".join(lines)


def print_page(browsers: Any, chromium: str, page: Path, target: Path, front: str) -> None:
    """Print a page of the folder it lies in; the target is there whole or not at all.

    Args:
        browsers: Playwright's ``chromium``.
        chromium: the program.
        page: the page; a script in it that is called MathJax is waited for.
        target: the PDF.
        front: the HTML of a title page.
    """
    with served(page.parent) as address:
        browser = browsers.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.set_default_timeout(PRINT_TIMEOUT)
        opened.goto(f"{address}/{page.name}")
        opened.add_style_tag(content=PAPER)
        opened.evaluate(PREPARE, front)
        opened.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        opened.evaluate("MathJax.startup.promise")
        with tempfile.TemporaryDirectory() as folder:
            unfinished = Path(folder) / target.name
            opened.pdf(
                path=unfinished, format="A4", outline=True, tagged=True,
                display_header_footer=True, header_template="<p></p>", footer_template=PAGE_NUMBER,
                margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
            )  # fmt: skip
            shutil.copy(unfinished, target)
        browser.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: what is asked for here is asked for by ourselves."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder at an address of this machine; scripts do not load from files."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FORMS = {"epub": epub, "pdf": pdf}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=FORMS)
    return FORMS[parser.parse_args(arguments).form]()


if __name__ == "__main__":
    sys.exit(main())
