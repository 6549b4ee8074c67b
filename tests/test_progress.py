"""What people see while training goes on."""

import io

import probes
from conftest import SMALL
from rich.console import Console

from dynasac import DynaSAC, progress


def said(monkeypatch, seconds=0.0, **console) -> str:
    """All that is written in a short training."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", seconds)
    file = io.StringIO()
    agent = DynaSAC("Rail-v0", probes.Slide(), SMALL)
    made = Console(file=file, width=100, **console)
    monkeypatch.setattr(progress, "Console", lambda: made)
    agent.learn(real_episodes=2, progress_bar=True)
    return file.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    text = said(monkeypatch, force_terminal=True)
    assert "\x1b" in text
    assert "100%" in text
    assert "updates/s" in text


def test_a_file_gets_lines_without_control_characters(monkeypatch):
    lines = said(monkeypatch).splitlines()
    assert lines[0].startswith("compiling (0 of 2 real episodes, 0 updates, ")
    assert any(line.startswith("planning after 1 real episode (1 of 2") for line in lines)
    assert any(line.startswith("real episode 2 (1 of 2") for line in lines)
    assert any(line.startswith("after 2 real episodes: its return was ") for line in lines)
    assert "\x1b" not in "".join(lines)
    assert "\r" not in "".join(lines)


def test_a_file_gets_little(monkeypatch):
    assert len(said(monkeypatch, seconds=1e6).splitlines()) == 2  # one for each real episode


def test_a_notebook_without_widgets_gets_lines(monkeypatch):
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    console = Console(force_jupyter=True)
    assert not progress.draws(console)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: object())
    assert progress.draws(console)
