"""The book in other forms: ``python tools/ebook.py epub`` or ``pdf``.

Both take the executed chapters of ``make book`` and execute nothing anew.

- EPUB: Sphinx's own, with formulas as MathML and every page turned into well-formed XHTML, which
  outputs of notebooks often are not, and which readers insist on.
- PDF: all pages as one, printed by Chromium.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import book

NAME = "transfer-learning"
EPUB = book.BUILD / f"{NAME}.epub"
PDF = book.BUILD / f"{NAME}.pdf"
MIMETYPE = "mimetype"  # EPUB's first file, which must not be compressed
PRINT_TIMEOUT = 600_000  # milliseconds: a thousand formulas are set before the page is printed

# Beside what assets/book.css says of paper: smaller type, a chapter on a page of its own.
PAPER = """
html { font-size: 11px; }
h1 { break-before: page; }
"""


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
    """Write the EPUB, and check that every page of it is XML; the exit status."""

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
    broken = malformed(EPUB)
    for name, error in broken.items():
        print(f"{name} is not well-formed: {error}", file=sys.stderr)
    print(f"The book: {book.relative(EPUB)}, {EPUB.stat().st_size / 1e6:.1f} MB.")
    return 1 if broken else 0


def repack(source: Path, target: Path) -> None:
    """Copy an EPUB with its pages made well-formed; the target is there whole or not at all."""
    unfinished = target.with_suffix(".part")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(unfinished, "w") as new:
        new.writestr(MIMETYPE, old.read(MIMETYPE), zipfile.ZIP_STORED)
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".xhtml"):
                content = well_formed(content.decode("utf-8")).encode("utf-8")
            if name != MIMETYPE:
                new.writestr(name, content, zipfile.ZIP_DEFLATED)
    unfinished.replace(target)


def well_formed(page: str) -> str:
    """A page of HTML as XML: every element closed, every attribute quoted, no named entity."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    for script in soup.find_all("script"):
        script.decompose()
    return soup.decode(formatter="minimal")


def malformed(path: Path) -> dict[str, str]:
    """The pages of an EPUB that are not XML, with what the parser says."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith((".xhtml", ".opf", ".ncx", ".xml")):
                try:
                    ElementTree.fromstring(archive.read(name))
                except ElementTree.ParseError as error:
                    found[name] = str(error)
    return found


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
    with served(pages) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{address}/all.html", timeout=PRINT_TIMEOUT)
        page.add_style_tag(content=PAPER)
        page.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        page.set_default_timeout(PRINT_TIMEOUT)
        page.evaluate("MathJax.startup.promise")
        with tempfile.TemporaryDirectory() as folder:
            unfinished = Path(folder) / PDF.name
            page.pdf(
                path=unfinished, format="A4", outline=True, tagged=True,
                margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
            )  # fmt: skip
            shutil.copy(unfinished, PDF)
        browser.close()
    print(f"The book: {book.relative(PDF)}, {PDF.stat().st_size / 1e6:.1f} MB.")
    return 0


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
