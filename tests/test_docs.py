"""The documentation without building it: links, code, names; `make docs` builds it."""

import ast
import importlib
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from test_cli import TINY

import dynasac
from dynasac import DynaSAC, UsageError, cli, runs
from dynasac.cli.parse import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in (ROOT / "README.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")))
FENCE = re.compile(r"^```(\S*).*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


def anchors(page: Path) -> set[str]:
    """What GitHub and the site make of headings."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.fixture(scope="module")
def from_program():
    """The site's extension that reads the program."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return importlib.import_module("from_program")
    finally:
        sys.path.remove(str(DOCS / "_ext"))


@pages
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pages
def test_every_page_is_in_the_contents(page):
    listed = " ".join(
        blocks(DOCS / "index.md", "{toctree}") + blocks(DOCS / "api/index.md", "{toctree}")
    )
    if page.parent in (DOCS / "api", DOCS / "notebooks", DOCS) and page != DOCS / "index.md":
        assert page.stem in listed or page.stem == "index"


@pages
def test_python_is_python(page):
    for code in blocks(page, "python", "{code-cell}"):
        ast.parse(code)


@pages
def test_commands_are_commands(page, monkeypatch, capsys):
    """Lines of shell blocks that call dynasac parse; files and modules are not looked for."""
    for block in blocks(page, "", "bash", "sh", "shell"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or not words[0].endswith("dynasac") or len(words) < 2:
                continue
            if words[1] in ("--help", "--version") or words[-1] == "--help":
                continue
            # the run that is gone on with is not there either
            if "--resume" in words:
                words.remove("--resume")
                words += ["Pendulum-v1"] if words[-2] == "--output" else []
            try:
                cli.parse.parse(words[1:])
            except SystemExit:
                pytest.fail(f"{line}\n{capsys.readouterr().err}")


def test_the_table_of_reliability_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS.parent))
    from benchmarks import reliability

    measured = json.loads((DOCS.parent / "benchmarks/results/reliability.json").read_text())
    assert "\n".join(reliability.table(measured)) in (DOCS / "reliability.md").read_text()


@pytest.fixture(scope="module")
def tanks(tmp_path_factory):
    """A directory with the two files of the quickstart, its environment in reach."""
    place = tmp_path_factory.mktemp("quickstart")
    environment, model, _ = blocks(DOCS / "quickstart.md", "python")
    (place / "tanks_env.py").write_text(environment)
    (place / "tanks.py").write_text(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        yield place


def test_the_quickstart_does_what_it_says(tanks, monkeypatch, capsys):
    monkeypatch.chdir(tanks)
    said = {
        words[1]: words[1:]
        for block in blocks(DOCS / "quickstart.md", "")
        for words in map(shlex.split, block.splitlines())
        if words[:1] == ["dynasac"] and "--resume" not in words
    }
    assert cli.run([*said["check-model"], "--steps=400"]) == 1
    assert "Tanks is wrong about observation[0]" in capsys.readouterr().out
    assert cli.run([*said["train"], *TINY, "--adapt=identify"]) == 0
    told = capsys.readouterr().out
    assert "pump 0.0001 → 0.00013" in " ".join(told.split())
    assert "everything is in runs/TwoTanks-v0/" in told
    assert cli.run([*said["evaluate"], "--episodes=2"]) == 0
    used: dict = {}
    exec(blocks(DOCS / "quickstart.md", "python")[-1], used)
    assert 0 <= used["voltage"][0] <= 10


MISTAKES = {
    "np.sqrt": ("jnp.sqrt", "np.sqrt"),
    "state[0] > 0.5": (
        "        flows =",
        "        if state[0] > 0.5:\n            pass\n        flows =",
    ),
    "without `[0]`": ("self.pump * action[0]", "self.pump * action"),
    "returns a list": ("return jax.random.uniform(key, (2,), maxval=0.5)", "return [0.1, 0.2]"),
    "of all components": ("next_state[1]", "next_state"),
    "action)`": ("reward(self, state, action, next_state)", "reward(self, state, action)"),
    "`rewards`": ("def reward", "def rewards"),
    "without a value": ("pump: float = 1.0e-4", "pump: float"),
    "no base class": ("(PhysicsModel)", ""),
}
"""by a part of the row in which the page on models tells what comes: how the mistake is made"""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_what_the_page_says(tanks, tmp_path, monkeypatch, mistake):
    model = (tanks / "tanks.py").read_text()
    right, wrong = MISTAKES[mistake]
    assert right in model
    (tmp_path / "tanks.py").write_text("import numpy as np\n" + model.replace(right, wrong))
    monkeypatch.chdir(tmp_path)
    rows = (DOCS / "models.md").read_text().splitlines()
    (row,) = (row for row in rows if mistake in row.partition(" | ")[0] and "`" in row[-4:])
    promised = row.rpartition(" | `")[2].removesuffix("` |").removesuffix(" …")
    with pytest.raises(UsageError) as error:
        DynaSAC("tanks_env:TwoTanks-v0", "tanks.py:Tanks")
    assert str(error.value).startswith(promised)


def test_every_public_name_is_in_the_reference():
    entries = re.findall(r"auto\w+:: (\w+)", (DOCS / "api" / "index.md").read_text())
    assert sorted(entries) == sorted(dynasac.__all__)


def test_every_module_is_in_the_reference():
    """Those that import-linter knows, the command line apart, whether they exist yet or not."""
    named = " ".join(
        re.findall(
            r"<!-- modules: (.*?) -->", "".join(p.read_text() for p in DOCS.glob("api/*.md"))
        )
    ).split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    modules = [name.strip(" ()") for layer in layers for name in layer.split("|")]
    assert sorted([*named, "__main__", "cli"]) == sorted(modules)


def test_names_in_the_prose_exist():
    """What the pages call `module.name` of the package is there."""
    package = {path.stem for path in (ROOT / "src" / "dynasac").iterdir()} | set(dynasac.__all__)
    checked = 0
    for page in PAGES:
        for name in re.findall(r"`((?:\w+\.)+\w+)(?:\(\))?`", FENCE.sub("", page.read_text())):
            first, *rest = name.split(".")
            if first not in package or rest[-1] in (
                "py",
                "md",
                "json",
                "csv",
                "safetensors",
                "html",
            ):
                continue
            found = dynasac
            try:
                for part in (first, *rest):
                    if not hasattr(found, part):
                        importlib.import_module(f"{found.__name__}.{part}")
                    found = getattr(found, part)
            except UsageError:  # an integration of a package that is not installed
                continue
            checked += 1
    assert checked > 20


def test_every_metric_is_defined():
    text = (DOCS / "metrics.md").read_text()
    assert [name for name in runs.METRICS if f"`{name}`" not in text] == []


def test_every_command_and_option_is_on_the_page_of_commands(from_program):
    text = from_program.commands()
    assert re.findall(r"^## dynasac (\S+)$", text, re.MULTILINE) == ["train", *COMMANDS]
    assert "\x1b" not in text
    for option in (
        "--model STR",
        "--planning.horizon INT",
        "--sac.learning-rate FLOAT",
        "--lookahead",
    ):
        assert f"`{option}" in text
    told = re.findall(r"^`[^`]+`\n: \S", text, re.MULTILINE)
    assert len(told) == text.count("\n: ")  # none without its help
    flags = {flag for name in ("train", *COMMANDS) for flag in _flags(from_program._help(name))}
    assert flags <= set(re.findall(r"--[\w.-]+", text))
    assert len(flags) > 40


def _flags(help: str) -> list[str]:
    return re.findall(r"^│ (--[\w.-]+)", help, re.MULTILINE)


def test_the_help_of_a_command_that_is_no_help_is_refused(from_program):
    with pytest.raises(ValueError, match="no help that a page can be made of"):
        from_program._parts("usage: nothing")
