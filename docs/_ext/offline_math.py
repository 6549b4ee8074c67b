"""Equations as MathML, which browsers draw by themselves: no script, no font and no network.

The translation from TeX is docutils' own.
"""

import html

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer, node):
    writer.body.append(_drawn(node, as_block=False))
    raise nodes.SkipNode


def _block(writer, node):
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(_drawn(node, as_block=True) + "</div>\n")
    raise nodes.SkipNode


def _drawn(node, as_block: bool) -> str:
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        where = getattr(node, "source", None), getattr(node, "line", None)
        logging.getLogger(__name__).warning("equation: %s", error, location=where)
        return f"<code>{html.escape(node.astext())}</code>"
