"""The claims ledger: all claims of the executed chapters on one page.

``tools/book.py`` calls :func:`page` between executing the chapters and writing the pages;
``chapters/ledger.md`` includes the result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlhelpers.records import Claim

VERDICTS = {"agrees": "agrees", "contradicts": "contradicts it", "leaves open": "leaves it open"}
# What Markdown would take for something other than the character itself.
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~^])")


def page(chapters: Mapping[str, tuple[str, Sequence[Claim]]]) -> str:
    """The ledger in Markdown.

    Args:
        chapters: by the file name of each chapter its title and its claims; chapters without
            claims are left out.
    """
    claims = [claim for _, found in chapters.values() for claim in found]
    said = [claim.folklore.verdict for claim in claims if claim.folklore]
    counts = [f"{said.count(verdict)} times it {words}" for verdict, words in VERDICTS.items()]
    lines = [
        f"The book makes {len(claims)} claims. Beside {len(said)} of them stands what is commonly "
        f"said, and what the measurement says to it: {', '.join(counts)}.",
    ]
    for name, (title, found) in chapters.items():
        if found:
            lines += ["", f"## [{plain(title)}]({name})", ""]
            lines += [line for claim in found for line in entry(claim)]
    return "\n".join(lines).rstrip() + "\n"


def entry(claim: Claim) -> list[str]:
    """A claim as a paragraph with its measurement, and what is commonly said of it."""
    lines = [
        f"`{claim.id}` {plain(claim.text)}",
        f": *Measured:* {plain(claim.measured)}",
    ]
    if folklore := claim.folklore:
        source = f" {{cite:p}}`{folklore.source}`" if folklore.source else ""
        lines.append(
            f": *Commonly said:* “{plain(folklore.text)}”{source} The measurement "
            f"**{VERDICTS[folklore.verdict]}**."
        )
    return [*lines, ""]


def plain(text: str) -> str:
    """The text as Markdown that shows it letter by letter, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
