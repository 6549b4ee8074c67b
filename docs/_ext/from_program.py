"""What the pages take from the program itself while the site is built, so that it is never stale.

- `<!-- commands -->` becomes the help of every command, `<!-- modules: NAMES -->` the reference of
  these modules of the package, as far as they exist, and `<!-- layers -->` the order of imports.
- Links to the measured results, which lie outside of this folder, lead to the page that shows them.
- A literal that names something with a place in the reference, as `sac.update` does, links to it.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import os
import pkgutil
import re
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[2]


def setup(app):
    app.connect("builder-inited", lambda app: _uncompiled())
    app.connect("source-read", _filled)
    app.connect("autodoc-skip-member", _on_the_page_of_public_names)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)
    app.connect("autodoc-process-docstring", _without_napoleon, priority=600)
    app.connect("autodoc-process-bases", _without_object)
    app.connect("doctree-resolved", _linked)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _filled(app, docname, source):
    if "<!-- commands -->" in source[0]:
        source[0] = source[0].replace("<!-- commands -->", commands())
    source[0] = source[0].replace("<!-- layers -->", layers())
    results = "../" * docname.count("/") + "results.md"
    source[0] = re.sub(r"\((\.\./)+benchmarks/results/README\.md\)", f"({results})", source[0])
    source[0] = re.sub(r"<!-- modules: (.*?) -->", lambda found: modules(found[1]), source[0])


# --- commands ---


def commands() -> str:
    """Every command as a section in Markdown: its usage, what it does, its options."""
    from dynasac.cli.parse import COMMANDS

    return "\n".join(_command(name) for name in ("train", *COMMANDS))


def _command(name: str) -> str:
    usage, about, boxes = _parts(_help(name))
    lines = [f"## dynasac {name}", "", "```text", usage, "```", "", _escaped(about), ""]
    for title, introduction, options in boxes:
        if title not in ("options", "positional arguments"):
            lines += [f"### {name}: {title.removesuffix(' options')}", ""]
        if introduction:
            lines += [_escaped(introduction), ""]
        for option, told in options:
            lines += [f"`{option}`", f": {_escaped(told)}", ""]
    return "\n".join(lines)


def _help(name: str) -> str:
    """What `dynasac NAME --help` prints."""
    from dynasac import cli

    said, width = io.TextIOWrapper(io.BytesIO(), "utf-8"), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            cli.run([name, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    said.seek(0)
    return said.read()


Box = tuple[str, str, list[tuple[str, str]]]


def _parts(text: str) -> tuple[str, str, list[Box]]:
    """Usage, description, and for each box its title, introduction and options with their help.

    Raises:
        ValueError: the help is not laid out as it is expected to be.
    """
    head, *rest = re.split(r"^╭─ (.*?) ─+╮$", text, flags=re.MULTILINE)
    usage, _, about = head.strip().removeprefix("usage: ").partition("\n\n")
    boxes = []
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        rows = [row[2:-2].rstrip() for row in body.splitlines() if row.startswith("│")]
        rules = [i for i, row in enumerate(rows) if row and not row.strip("─")]
        first = rules[0] + 1 if rules else 0
        introduction = " ".join(row.strip() for row in rows[: first - 1 if rules else 0])
        options: list[tuple[str, str]] = []
        for row in rows[first:]:
            if not row.startswith(" "):
                option, _, told = row.partition("  ")
                options.append((option, told.strip()))
            else:
                option, told = options.pop()
                options.append((option, f"{told} {row.strip()}".strip()))
        if title == "options":
            options = [pair for pair in options if not pair[0].startswith("-h,")]
        boxes.append((title, introduction, options))
    if not usage or not about or not boxes:
        raise ValueError(f"this is no help that a page can be made of:\n{text}")
    return usage, about, boxes


def _escaped(text: str) -> str:
    """Plain text as Markdown; what stands between backticks is code there too."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_{}\[\]<>#$|~])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


# --- the reference ---


def modules(names: str) -> str:
    """The reference of modules of the package, those inside packages included, in Markdown."""
    found = []
    for name in names.split():
        full = f"dynasac.{name}"
        if importlib.util.find_spec(full) is None:
            continue
        module = importlib.import_module(full)
        inner = pkgutil.iter_modules(getattr(module, "__path__", []))
        found += [full, *(f"{full}.{each.name}" for each in inner if each.name[0] != "_")]
    return "\n".join(_module(full) for full in found)


def _module(full: str) -> str:
    heading = f"## {full.removeprefix('dynasac.')}"
    # what a package takes from its modules is described with them
    directive = [f".. automodule:: {full}", "   :ignore-module-all:"]
    lines = [heading, "", "```{eval-rst}", *directive]
    return "\n".join([*lines, "```", ""])


def _uncompiled() -> None:
    """Put the functions that compiled ones wrap in their place, for autodoc to see."""
    import dynasac

    for info in pkgutil.walk_packages(dynasac.__path__, "dynasac."):
        if info.name.startswith("dynasac.cli") or info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, value in list(vars(module).items()):
            inner = getattr(value, "__wrapped__", None)
            ours = getattr(inner, "__module__", "").startswith("dynasac")
            if ours and not inspect.isroutine(value) and not inspect.isclass(value):
                setattr(module, name, inner)


def _on_the_page_of_public_names(app, what, name, member, skip, options):
    """Whether a member of a module is documented elsewhere, as a public name of the package."""
    import dynasac

    public = [getattr(dynasac, each) for each in dynasac.__all__]
    if what == "module" and any(member is each for each in public):
        return True
    return None


SECTION = re.compile(r"^(Arguments|Args|Returns|Raises):$")


def _as_restructured_text(app, what, name, obj, options, lines):
    """Indented examples as code; fields that nobody described without a description."""
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = [""]
    made, code, section = [], False, False
    for line in lines:
        if line and not line.startswith(" "):
            code, section = False, bool(SECTION.match(line))
        elif line and not code and not section and made and not made[-1]:
            made += [".. code-block:: python", ""]
            code = True
        made.append(line)
    lines[:] = made
    if what in ("attribute", "data", "property"):
        _values[name] = made


_values: dict[str, list[str]] = {}
"""what was said of fields and properties, before napoleon took its first word for a type"""


def _without_napoleon(app, what, name, obj, options, lines):
    lines[:] = _values.pop(name, lines)


def _without_object(app, name, obj, options, bases):
    bases[:] = [base for base in bases if base is not object]


# --- layers ---


def layers() -> str:
    """The layers of the package as they stand in pyproject.toml, those that exist, in Markdown."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = project["tool"]["importlinter"]["contracts"]
    lines = []
    for layer in contract["layers"]:
        names = [name.strip(" ()") for name in layer.split("|")]
        found = [name for name in names if importlib.util.find_spec(f"dynasac.{name}")]
        if found:
            lines.append("   ".join(found))
    return "\n".join(["```text", "\n   ↓\n".join(lines), "```"])


# --- links ---


@functools.cache
def _public() -> tuple[str, ...]:
    import dynasac

    return tuple(dynasac.__all__)


def _linked(app, doctree, docname):
    """Link literals that name something in the reference."""
    domain = app.env.domains.python_domain
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        if "." not in name and name not in _public():
            continue
        if isinstance(literal.parent, nodes.reference | pending_xref) or literal.parent is None:
            continue
        entry = domain.objects.get(f"dynasac.{name}") or domain.objects.get(name)
        if entry is None or (entry.objtype == "module" and entry.docname == docname):
            continue
        link = make_refnode(
            app.builder, docname, entry.docname, entry.node_id, literal.deepcopy(), name
        )
        literal.replace_self(link)
