"""A Sphinx extension that writes formulas as MathML, for readers that run no script.

``tools/ebook.py`` switches it on for the EPUB. The translation is docutils' own.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

# What docutils does not know, and what says nearly the same. Delimiters grow by themselves.
KNOWN_AS = ((r"\\dots\b", r"\\ldots"), (r"\\[Bb]ig{1,2}[lr]?(?![a-zA-Z])", ""))
# Around displayed formulas Sphinx puts an environment that MathML has no need of.
SPLIT = re.compile(r"\\(begin|end)\{split\}")

log = logging.getLogger(__name__)


def mathml(tex: str, *, block: bool) -> str:
    """A formula as MathML.

    Raises:
        MathError: if docutils cannot translate it.
    """
    plain = SPLIT.sub("", tex)
    for found, instead in KNOWN_AS:
        plain = re.sub(found, instead, plain)
    return str(tex2mathml(plain.strip(), as_block=block))


def _visit(writer: Any, node: nodes.Element, block: bool) -> None:
    try:
        writer.body.append(mathml(node.astext(), block=block))
    except MathError as error:
        log.warning("no MathML for a formula: %s", error, location=node)
        writer.body.append(writer.starttag(node, "code") + writer.encode(node.astext()) + "</code>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda writer, node: _visit(writer, node, False), None),
        block_renderers=(lambda writer, node: _visit(writer, node, True), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
