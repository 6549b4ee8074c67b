"""That benchmarks can begin; what they measure takes hours and is kept in benchmarks/results."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("module", sorted(p.stem for p in (ROOT / "benchmarks").glob("[a-z]*.py")))
def test_a_benchmark_can_be_imported(module, monkeypatch):
    pytest.importorskip("stable_baselines3")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setitem(sys.modules, "sbx", None)  # needed only when it runs
    importlib.import_module(f"benchmarks.{module}")
