"""What is installed: every version of it is written down, and known holes in it are looked for."""

import importlib.metadata
import itertools
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]


def needed() -> set[str]:
    """All that the project's extras lead to, as far as it is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    open_ = [Requirement(text) for text in (*project["dependencies"], *extras)]
    found, followed = set(), set()
    while open_:
        asked = open_.pop()
        name = canonicalize_name(asked.name)
        if name == "dynasac" or (name, frozenset(asked.extras)) in followed:
            continue
        followed.add((name, frozenset(asked.extras)))
        found.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        open_ += [
            further
            for further in map(Requirement, requires)
            if not further.marker
            or any(further.marker.evaluate({"extra": extra}) for extra in ("", *asked.extras))
        ]
    return found


def test_every_distribution_that_the_extras_need_is_pinned():
    pinned = {canonicalize_name(pin.partition("==")[0]) for pin in PINS}
    assert len(needed()) > 80
    assert needed() | {"pip-audit"} <= pinned


def test_pins_are_of_one_version_each():
    for pin in PINS:
        (specifier,) = Requirement(pin).specifier
        assert (specifier.operator, "*" in specifier.version) == ("==", False), pin


def audited(folder: Path, out: str, error: str = "", code: int = 0) -> tuple[int, str]:
    """What the audit makes of a pip-audit that says this; and its exit code."""
    program = folder / "pip-audit"
    said = f"import sys; print({out!r}); print({error!r}, file=sys.stderr); sys.exit({code})"
    program.write_text(f"#!{sys.executable}\n{said}\n")
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit.py", program],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_vulnerability_fails(tmp_path):
    hole = {"id": "CVE-1", "fix_versions": ["2.0"]}
    pins = [
        {"name": "safe", "version": "1.0", "vulns": []},
        {"name": "open", "version": "1.0", "vulns": [hole]},
    ]
    said = json.dumps({"dependencies": pins, "fixes": []})
    code, told = audited(tmp_path, said, "Found 1 known vulnerability", 1)
    assert code == 1
    assert told == "open 1.0: CVE-1, mended in 2.0\n2 of 2 pins were audited\n"
    safe = json.dumps({"dependencies": pins[:1], "fixes": []})
    assert audited(tmp_path, safe) == (0, "1 of 1 pins were audited\n")


def test_a_service_that_knows_no_package_has_audited_nothing(tmp_path):
    """pip-audit itself says then that no vulnerabilities are known."""
    skipped = {"name": "mine", "skip_reason": "Dependency not found on PyPI"}
    said = json.dumps({"dependencies": [skipped], "fixes": []})
    assert audited(tmp_path, said) == (1, "0 of 1 pins were audited\n")


@pytest.mark.parametrize(
    ("last", "code"),
    [("requests.exceptions.ConnectionError: no such host", 0), ("pip-audit: error: what?", 1)],
)
def test_only_a_service_that_cannot_be_reached_is_forgiven(tmp_path, last, code):
    told = audited(tmp_path, "", f"Traceback\n{last}", 1)
    assert told == (code, f"nothing was audited: {last}\n")
