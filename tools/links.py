"""The links of the built book. ``python tools/links.py`` asks every address outside of it.

Inside the book every link, picture and download has to lead to a file of it, and every fragment to
an element of that page: :func:`dead_ends`, which the tests ask on every build. Addresses outside
are asked weekly, by ``make linkcheck``: the network is slow, and other people's servers fail.
"""

from __future__ import annotations

import concurrent.futures
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import book
import requests

# What an element may name: a page, a picture, a script, a download, where a form leads.
NAMING = ("href", "src", "action", "data", "poster")
# Servers that let people in and robots not answer with these; nothing follows from it.
REFUSED = (401, 403, 405, 406, 418, 429, 451, 999)
TEMPORARY = (429, 500, 502, 503, 504)
# The button for a new issue carries the page's name: one address for each page, all the same.
PREFILLED = re.compile(r"(/issues/new)\?.*")
INLINE = re.compile(r"(?<=;base64,)[A-Za-z0-9+/=]+")
BROWSER = {"User-Agent": "Mozilla/5.0 (compatible; link check of a book)"}


@dataclass
class Page(HTMLParser):
    """What a page names, and what of it can be named.

    Attributes:
        links: addresses as they stand in the page.
        ids: the elements that a fragment may lead to.
        canonical: the address that the page gives itself, empty if it gives none.
    """

    links: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    canonical: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        if tag == "link" and found.get("rel") == "canonical":
            self.canonical = found.get("href", "")
            return
        self.links += [found[name] for name in NAMING if name in found]
        self.ids |= {found[name] for name in ("id", "name") if name in found}


def read(folder: Path) -> dict[str, Page]:
    """The pages of a built book, by their paths in its folder.

    Raises:
        FileNotFoundError: if there are none.
    """
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith("_static/"):
            pages[name] = Page()
            # Without the bytes of pictures, most of a page and slow to parse.
            pages[name].feed(INLINE.sub("", path.read_text(encoding="utf-8")))
    if not pages:
        raise FileNotFoundError(f"{folder} holds no page; build the book first: make book")
    return pages


def home(pages: Mapping[str, Page]) -> str:
    """Where the book is published, as its pages say; empty if they do not."""
    for name, page in pages.items():
        if page.canonical.endswith(name):
            return page.canonical.removesuffix(name)
    return ""


# --- inside -------------------------------------------------------------------------------


def dead_ends(folder: Path) -> list[str]:
    """The links within a built book that lead nowhere, a sentence each."""
    pages = read(folder)
    base = home(pages)
    found = set()
    for name, page in pages.items():
        for link in page.links:
            target, fragment = within(link, name, base)
            if target is None:
                continue
            if target.endswith("/") or not target:
                target += "index.html"
            if not (folder / target).is_file():
                found.add(f"{name} names {target}, which does not exist.")
            elif fragment and target in pages and fragment not in pages[target].ids:
                found.add(f"{name} leads to {target}#{fragment}, which does not exist.")
    return sorted(found)


def within(link: str, page: str, base: str) -> tuple[str | None, str]:
    """The path in the book that a link of a page leads to, and its fragment.

    None stands for what is no path of the book: an address elsewhere, or data.
    """
    if base and link.startswith(base):
        link = "/" + link.removeprefix(base)
    if urlsplit(link).scheme or link.startswith("//"):
        return None, ""
    address, fragment = urldefrag(link)
    path = urlsplit(urljoin(f"/{page}", address) if address else f"/{page}").path
    return unquote(path).lstrip("/"), unquote(fragment)


# --- outside ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What an address outside of the book answered.

    Attributes:
        address: what was asked for.
        status: of the answer; None where there was none.
        moved: where it has moved for good; empty if it has not.
        error: why there was no answer.
    """

    address: str
    status: int | None = None
    moved: str = ""
    error: str = ""

    @property
    def dead(self) -> bool:
        """Whether a reader would find nothing there."""
        return self.status is None or (self.status >= 400 and self.status not in REFUSED)

    def __str__(self) -> str:
        said = self.error or f"answers {self.status}"
        if self.status in REFUSED:
            said += ", as to robots"
        return f"{self.address}: {said}" + (f", moved to {self.moved}" if self.moved else "")


def outside(folder: Path) -> dict[str, list[str]]:
    """The addresses outside of a built book, each with the pages that name it."""
    pages = read(folder)
    base = home(pages)
    found = defaultdict(set)
    for name, page in pages.items():
        for link in page.links:
            address = PREFILLED.sub(r"\1", urldefrag(link).url)
            if urlsplit(address).scheme in ("http", "https") and not (
                base and address.startswith(base)
            ):
                found[address].add(name)
    return {address: sorted(names) for address, names in sorted(found.items())}


def ask(address: str, *, tries: int = 3, timeout: float = 30.0, pause: float = 5.0) -> Answer:
    """Ask for an address, again where it does not answer in time or says that it is busy.

    Args:
        address: with its scheme.
        tries: how often, in all.
        timeout: seconds to wait for an answer.
        pause: seconds before the second try, doubled before each further one.
    """
    answer = Answer(address, error="was not asked")
    for attempt in range(tries):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            # Not HEAD, which many servers refuse; streamed, so that no body is fetched.
            with requests.get(address, headers=BROWSER, timeout=timeout, stream=True) as got:
                for_good = any(step.is_permanent_redirect for step in got.history)
                answer = Answer(address, got.status_code, moved=got.url if for_good else "")
        except requests.Timeout:
            answer = Answer(address, error=f"no answer in {timeout:g} s, {attempt + 1} times")
        except requests.RequestException as error:
            answer = Answer(address, error=f"{type(error).__name__}: {error}")
        if answer.status is not None and answer.status not in TEMPORARY:
            break
    return answer


def check(
    addresses: Mapping[str, Sequence[str]], *, question: Callable[[str], Answer] = ask
) -> int:
    """Ask for every address, say what is dead, moved or refused; the exit status."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(question, addresses))
    dead = [answer for answer in answers if answer.dead]
    for answer in answers:
        if answer in dead:
            print(f"DEAD {answer} (in {', '.join(addresses[answer.address])})", file=sys.stderr)
        elif answer.moved or answer.status in REFUSED:
            print(answer)
    print(f"{len(answers)} addresses asked, {len(dead)} dead.")
    return int(bool(dead))


def main() -> int:
    """Check the book in ``_build/html``; the exit status."""
    if inside := dead_ends(book.HTML):
        print("\n".join(inside), file=sys.stderr)
    return check(outside(book.HTML)) or int(bool(inside))


if __name__ == "__main__":
    sys.exit(main())
