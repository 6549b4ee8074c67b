"""Equations as MathML, which browsers draw by themselves: no script, no font and no network.

The translation from TeX is docutils' own.
"""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer, node):
    writer.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(writer, node):
    attributes = {"ids": node["ids"]} if node["ids"] else {}
    writer.body.append(writer.starttag(node, "div", CLASS="math", **attributes))
    writer.body.append(tex2mathml(node.astext(), as_block=True))
    writer.body.append("</div>\n")
    raise nodes.SkipNode
