"""A Sphinx extension: what every page of the book says about itself.

- Under its title an edition stamp: version, commit and its date, torch. It is put into the written
  page and not into the kept doctree, and the stamp is a setting of the ``html`` kind: after a new
  commit Sphinx writes every page again, and reads and executes none.
- In its head what a search engine or a chat shows of a link to it.
- For GitHub Pages a page 404. It is served for any missing address at any depth, so its links are
  absolute, and it needs no other file.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chapter import version
from docutils import nodes
from markupsafe import Markup
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
# The cell of a solution, from its beginning to the end of its fold's label.
SOLUTION = re.compile(r'<div class="cell[^"]*\btag_solution\b[^"]*">\s*<details.*?</summary>', re.S)
LONGEST = 200  # characters of a description; search engines cut it there


@dataclass(frozen=True)
class Edition:
    """What a page was made from.

    Attributes:
        version: of ``tlhelpers``.
        torch: its version.
        commit: the short name of the commit; None outside of a git checkout.
        date: of the commit, as 2026-11-22.
        clean: whether nothing differed from the commit.
    """

    version: str
    torch: str
    commit: str | None = None
    date: str | None = None
    clean: bool = True

    def __str__(self) -> str:
        made = "a copy without git's history"
        if self.commit:
            made = f"{self.date} · commit {self.commit}"
            made += "" if self.clean else " with changes of its own"
        return f"Edition {self.version} · {made} · torch {self.torch}"


def edition(root: Path = ROOT) -> Edition:
    """The edition of a folder with the package ``tlhelpers``."""
    parts = version(root / "tlhelpers" / "__init__.py"), installed("torch").partition("+")[0]
    # The folder of an archive may lie inside somebody else's checkout, whose commit says nothing.
    top = git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return Edition(*parts)
    found = git(root, "log", "-1", "--format=%h %cs")
    if found is None:  # a checkout without a first commit
        return Edition(*parts)
    commit, date = found.split()
    return Edition(*parts, commit, date, clean=git(root, "status", "--porcelain") == "")


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, or no checkout."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# --- each page ----------------------------------------------------------------------------


def stamp(page: str, line: str) -> str:
    """The body of a page with a line under its title; as it is, where it has no title."""
    return page.replace("</h1>", f'</h1>\n<p class="tl-edition">{html.escape(line)}</p>', 1)


def mended(page: str) -> str:
    """The body of a page without what its makers hide from people who hear it.

    To a screen reader each fold is labelled "Toggle hidden content", over whatever stands there,
    and the bibliography is a list that has no items. And a folded solution is called one.
    """
    page = page.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    page = page.replace('role="doc-biblioentry"', 'role="listitem"')
    return SOLUTION.sub(lambda found: found[0].replace("the code", "the solution"), page)


def description(page: nodes.document) -> str:
    """The first paragraph of a page that stands in no box or list, cut after a word."""
    for paragraph in page.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            whole = len(text) <= LONGEST
            return text if whole else text[:LONGEST].rsplit(" ", 1)[0].rstrip(",;:") + " …"
    return ""


def head(*, title: str, about: str, site: str, address: str, image: str) -> str:
    """The elements of a page's head that describe it to others; empty ones are left out."""
    properties = {
        "og:type": "article",
        "og:site_name": site,
        "og:title": title,
        "og:description": about,
        "og:url": address,
        "og:image": image,
    }
    lines = [f'<meta name="description" content="{html.escape(about)}" />'] if about else []
    lines += [
        f'<meta property="{name}" content="{html.escape(content)}" />'
        for name, content in properties.items()
        if content
    ]
    if image:
        lines.append('<meta name="twitter:card" content="summary_large_image" />')
    return "\n    ".join(lines)


def on_page(
    app: Sphinx, name: str, template: str, context: dict[str, Any], page: nodes.document | None
) -> None:
    """Add stamp and head to a page that is about to be written."""
    if "body" in context:
        context["body"] = mended(stamp(context["body"], app.config.edition))
    if app.builder.name != "html":
        return
    image = app.config.share_image
    context["metatags"] = context.get("metatags", "") + head(
        title=Markup(context.get("title", "")).striptags(),
        about=description(page) if page is not None else "",
        site=app.config.html_title,
        address=context.get("pageurl") or "",
        image=f"{app.config.html_baseurl}_static/{Path(image).name}" if image else "",
    )


# --- the whole book -----------------------------------------------------------------------

NOT_FOUND = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>No such page — {title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 36rem; margin: 12vh auto; padding: 0 1.25rem; font: 1.1rem/1.6 sans-serif; }}
input, button {{ font: inherit; padding: 0.3rem 0.6rem; max-width: 100%; }}
</style>
</head>
<body>
<main>
<h1>There is no such page</h1>
<p>It may have moved, or the address was mistyped. The book begins
<a href="{base}chapters/index.html">here</a>, with a map of its chapters; terms are in the
<a href="{base}chapters/glossary.html">glossary</a>.</p>
<form action="{base}search.html" role="search">
<label>Search the book: <input type="search" name="q" required></label>
<button>Search</button>
</form>
</main>
</body>
</html>
"""


def address_of_pages(repository: str) -> str:
    """Where GitHub Pages shows a repository: ``https://OWNER.github.io/NAME/``.

    Raises:
        ConfigError: if the repository is not one of GitHub.
    """
    parts = urlsplit(repository)
    owner, _, name = parts.path.strip("/").partition("/")
    if parts.netloc != "github.com" or not name:
        raise ConfigError(
            f"the address of the book is made from that of a repository at github.com, found "
            f"{repository!r}: state it as html.baseurl in _config.yml."
        )
    return f"https://{owner}.github.io/{name}/"


def on_config(app: Sphinx, config: Config) -> None:
    """Fill in what is made anew for each build."""
    config.edition = str(edition())
    repository = config.html_theme_options.get("repository_url", "")
    if repository and not config.html_baseurl:  # an EPUB has neither
        config.html_baseurl = address_of_pages(repository)


def on_end(app: Sphinx, error: Exception | None) -> None:
    """Write the files that no page of the contents brings."""
    if error is not None or app.builder.name != "html":
        return
    texts = {"title": app.config.html_title, "base": app.config.html_baseurl}
    page = NOT_FOUND.format(**{name: html.escape(text) for name, text in texts.items()})
    (Path(app.outdir) / "404.html").write_text(page, encoding="utf-8")
    if image := app.config.share_image:
        shutil.copy(Path(app.srcdir) / image, Path(app.outdir) / "_static")


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls when it loads the extension."""
    app.add_config_value("edition", "", "html")
    app.add_config_value("share_image", "", "html")  # a picture for links, from the book's folder
    app.connect("config-inited", on_config)
    app.connect("html-page-context", on_page)
    app.connect("build-finished", on_end)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
