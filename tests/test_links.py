"""Behaviour of ``tools/links.py``: on pages written here, and against a server of this machine."""

from __future__ import annotations

import http.server
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import links  # a script's folder, not a package

HOME = "https://somebody.github.io/book/"
HEAD = f'<link rel="canonical" href="{HOME}chapters/a.html">'
GOOD = """<h1 id="top-of-a">A</h1><img src="../_static/x.png"><a href="#top-of-a">here</a>
<a href="b.html#caf%C3%A9">there</a><a href="b.html?q=1">asked</a><a href="../">home</a>
<a href="https://elsewhere.org/x#part">out</a><a href="mailto:a@b.c">post</a><img src="data:,">"""


def book(folder: Path, page: str = "") -> Path:
    """A book of three pages, the first of which may say more."""
    for name, text in {
        "index.html": '<meta http-equiv="refresh" content="0">',
        "chapters/a.html": HEAD + GOOD + page,
        "chapters/b.html": '<p id="café">B</p><a download href="../_static/x.png">get</a>',
        "_static/x.png": "",
        "_static/template.html": '<a href="nowhere.html">not a page of the book</a>',
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_links_of_every_kind_that_lead_somewhere_are_left(tmp_path: Path) -> None:
    assert links.dead_ends(book(tmp_path)) == []


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('<a href="c.html">', "chapters/c.html, which does not exist"),
        ('<a href="b.html#tea">', "chapters/b.html#tea, which does not exist"),
        ('<a href="#tea">', "chapters/a.html#tea, which does not exist"),
        ('<img src="y.png">', "chapters/y.png, which does not exist"),
        ('<script src="../_static/y.js"></script>', "_static/y.js, which does not exist"),
        ('<link rel="stylesheet" href="../y.css">', "y.css, which does not exist"),
        ('<form action="../search.html">', "search.html, which does not exist"),
        ('<a href="/_static/">', "_static/index.html, which does not exist"),
        (f'<a href="{HOME}chapters/b.html#tea">', "chapters/b.html#tea, which does not exist"),
    ],
)
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, said: str, found: str) -> None:
    (sentence,) = links.dead_ends(book(tmp_path, said))
    assert sentence.startswith("chapters/a.html ")
    assert found in sentence


def test_addresses_outside_are_listed_once_with_their_pages(tmp_path: Path) -> None:
    issues = "https://github.com/a/b/issues/new"
    more = f'<a href="{HOME}chapters/b.html">ours</a><a href="https://elsewhere.org/x">again</a>'
    more += f'<a href="{issues}?title=one">one</a><a href="{issues}?title=two">two</a>'
    found = links.outside(book(tmp_path, more))
    page = ["chapters/a.html"]
    assert found == {issues: page, "https://elsewhere.org/x": page}


def test_a_folder_without_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make book"):
        links.dead_ends(tmp_path)


# Outside


ASKED: Counter[str] = Counter()  # how often each path


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; the first question for ``/slow`` and ``/busy`` is not answered well."""

    def do_GET(self) -> None:
        ASKED[self.path] += 1
        first = ASKED[self.path] == 1
        if self.path == "/hangs" or (self.path == "/slow" and first):
            time.sleep(1.0)
        status = {"/gone": 404, "/robots": 403, "/old": 301, "/elsewhere": 302, "/lost": 301}
        code = 503 if self.path == "/busy" and first else status.get(self.path, 200)
        self.send_response(code)
        if code in (301, 302):
            self.send_header("Location", "/gone" if self.path == "/lost" else "/new")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that did not wait."""


@pytest.fixture
def server() -> Iterator[str]:
    ASKED.clear()
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def ask(address: str) -> links.Answer:
    return links.ask(address, tries=2, timeout=0.4, pause=0.01)


@pytest.mark.parametrize(
    ("path", "dead", "times", "said"),
    [
        ("/here", False, 1, "answers 200"),
        ("/gone", True, 1, "answers 404"),
        ("/robots", False, 1, "answers 403, as to robots"),
        ("/slow", False, 2, "answers 200"),
        ("/busy", False, 2, "answers 200"),
        ("/hangs", True, 2, "no answer in 0.4 s, 2 times"),
        ("/old", False, 1, "moved to http"),
        ("/lost", True, 1, "answers 404"),
    ],
)
def test_what_an_address_answers(server: str, path: str, dead: bool, times: int, said: str) -> None:
    answer = ask(server + path)
    assert answer.dead == dead
    assert said in str(answer)
    assert ASKED[path] == times


def test_only_a_move_for_good_is_told(server: str) -> None:
    assert ask(server + "/old").moved == server + "/new"
    assert ask(server + "/elsewhere").moved == ""


def test_a_server_that_is_not_there_is_dead() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    answer = ask(f"http://127.0.0.1:{port}/")
    assert answer.dead
    assert "Connection" in answer.error


def test_the_report_names_dead_and_moved_ones_and_fails_for_the_dead(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = {server + "/here": ["a.html"], server + "/old": ["a.html"]}
    assert links.check(fine, question=ask) == 0
    assert "/old: answers 200, moved to" in capsys.readouterr().out
    assert links.check({server + "/gone": ["a.html", "b.html"]}, question=ask) == 1
    told = capsys.readouterr()
    assert f"DEAD {server}/gone: answers 404 (in a.html, b.html)" in told.err
    assert "1 addresses asked, 1 dead." in told.out
