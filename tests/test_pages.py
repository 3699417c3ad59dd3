"""Behaviour of ``tools/pages.py``: the edition stamp, and what a page's head says."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from sphinx.errors import ConfigError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import pages  # a script's folder, not a package

TORCH = version("torch").partition("+")[0]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a package, as an archive of a release unpacks it."""
    (tmp_path / "tlhelpers").mkdir()
    (tmp_path / "tlhelpers/__init__.py").write_text('__version__ = "4.5.6"\n')
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_an_archive_has_a_stamp_without_a_commit(copy: Path) -> None:
    line = str(pages.edition(copy))
    assert line == f"Edition 4.5.6 · a copy without git's history · torch {TORCH}"


def test_a_checkout_has_its_commit_and_a_changed_one_says_so(copy: Path) -> None:
    git(copy, "init", "-q")
    assert pages.edition(copy).commit is None, "nothing is committed yet"
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "First", "--date", "2026-11-22T03:00:00")
    found = pages.edition(copy)
    assert git(copy, "rev-parse", "HEAD").startswith(str(found.commit))
    assert found.clean
    assert re.fullmatch(
        rf"Edition 4\.5\.6 · \d{{4}}-\d\d-\d\d · commit {found.commit} · torch .+", str(found)
    )
    (copy / "new.txt").write_text("not committed")
    assert f"commit {found.commit} with changes of its own · " in str(pages.edition(copy))


def test_an_archive_inside_another_checkout_takes_no_commit_of_it(copy: Path) -> None:
    inner = copy / "unpacked"
    (inner / "tlhelpers").mkdir(parents=True)
    (inner / "tlhelpers/__init__.py").write_text('__version__ = "7.8.9"\n')
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "First")
    assert pages.edition(copy).commit
    assert pages.edition(inner).commit is None


def test_the_stamp_stands_under_the_first_title_only() -> None:
    body = pages.stamp("<h1>One</h1><p>x</p><h1>Two</h1>", "Edition <1>")
    assert body.count("tl-edition") == 1
    assert re.search(r'</h1>\s*<p class="tl-edition">Edition &lt;1&gt;</p><p>x', body)
    assert pages.stamp("<p>no title</p>", "Edition 1") == "<p>no title</p>"


FOLD = """<div class="cell {tags} docutils container">
<details class="admonition hide above-input">
<summary aria-label="Toggle hidden content">
<p class="collapsed admonition-title">Show the code</p>
<p class="expanded admonition-title">Hide the code</p>
</summary>Show the code</details></div>"""


def test_a_fold_is_read_out_as_it_reads_and_a_solution_is_called_one() -> None:
    plain, solution = (FOLD.format(tags=f"tag_hide-input {tag}") for tag in ("x", "tag_solution"))
    found = pages.mended(plain + solution + plain)
    assert "aria-label" not in found
    assert found.count("Show the solution") == found.count("Hide the solution") == 1
    assert found.count("Show the code") == 2 + 3, "labels of the others, and what is folded"


def test_a_bibliography_is_a_list_of_items() -> None:
    entry = '<div role="list"><div class="citation" role="doc-biblioentry">A</div></div>'
    assert 'class="citation" role="listitem"' in pages.mended(entry)


def test_a_description_is_the_first_paragraph_of_the_text() -> None:
    source = "Title\n=====\n\n    A box.\n\nFirst  *words*\nof it.\n\nMore.\n"
    assert pages.description(publish_doctree(source)) == ""  # a lone title is the document's own
    source += "\nPart\n----\n\n  Quoted.\n\nThe text. " + "Long words " * 40
    found = pages.description(publish_doctree(source))
    assert found.startswith("The text. Long words")
    assert found.endswith((" words …", " Long …"))
    assert len(found) <= pages.LONGEST + 2


def test_the_head_quotes_and_leaves_out_what_is_not_known() -> None:
    said = {"title": 'A "title"', "about": "", "site": "S", "address": "", "image": ""}
    found = pages.head(**said)
    assert 'content="A &quot;title&quot;"' in found
    assert re.findall(r'property="([^"]+)"', found) == ["og:type", "og:site_name", "og:title"]
    assert "description" not in found


def test_the_address_of_the_pages_follows_from_the_repository() -> None:
    found = pages.address_of_pages("https://github.com/somebody/some-book/")
    assert found == "https://somebody.github.io/some-book/"
    with pytest.raises(ConfigError, match=r"html\.baseurl"):
        pages.address_of_pages("https://example.org/somebody/some-book")
