"""Checkpoints: what is read is what was written, or an error in one line; never half a file."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dynasac import UsageError, checkpoint

TREE = {
    "matrix": jnp.arange(6.0).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": jnp.asarray(2.5),
    "flags": (jnp.array([True, False]), jnp.asarray(True)),
    "count": jnp.asarray(7, jnp.int32),
    "empty": jnp.zeros((0, 4)),
}


@pytest.fixture
def stem(tmp_path):
    checkpoint.save_tree(tmp_path / "state", TREE, {"name": "probe"})
    return tmp_path / "state"


def refused(stem, message, template=TREE):
    with pytest.raises(UsageError, match=message) as error:
        checkpoint.load_tree(stem, template)
    assert "\n" not in str(error.value)


def rewritten(stem, **changes):
    path = stem.with_suffix(".safetensors")
    save_file({**load_file(path), **changes}, path)


def test_round_trip(stem):
    read = checkpoint.load_tree(stem, TREE)
    assert jax.tree.structure(read) == jax.tree.structure(TREE)
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(TREE), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_array_equal(ours, theirs)


def test_the_template_may_be_abstract(stem):
    read = checkpoint.load_tree(stem, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE)))
    np.testing.assert_array_equal(read["transposed"], TREE["transposed"])


def test_files_are_plain(stem):
    assert sorted(path.name for path in stem.parent.iterdir()) == [
        "state.json",
        "state.safetensors",
    ]
    assert json.loads(stem.with_suffix(".json").read_text()) == {
        "format": checkpoint.FORMAT,
        "name": "probe",
    }


def test_a_truncated_file(stem):
    path = stem.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    refused(stem, r"state\.safetensors is damaged")


def test_an_empty_file(stem):
    stem.with_suffix(".safetensors").write_bytes(b"")
    refused(stem, r"state\.safetensors is damaged")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 10, b"[" * 100_000, b"1" * 5000]
)
def test_damaged_json(stem, content):
    stem.with_suffix(".json").write_bytes(content)
    refused(stem, r"state\.json is damaged")


def test_json_that_is_a_directory(stem):
    stem.with_suffix(".json").unlink()
    stem.with_suffix(".json").mkdir()
    refused(stem, r"cannot read .*state\.json: Is a directory")


def test_json_that_is_no_object(stem):
    stem.with_suffix(".json").write_text("[1]")
    refused(stem, "does not hold a JSON object")


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_file(stem, suffix):
    stem.with_suffix(suffix).unlink()
    refused(stem, rf"there is no state\{suffix}")


@pytest.mark.parametrize("written", [99, None, "1"])
def test_another_format(stem, written):
    stem.with_suffix(".json").write_text(json.dumps({"format": written}))
    refused(stem, f"has format {written}; this version reads {checkpoint.FORMAT}")


def test_another_shape(stem):
    refused(stem, r"float32\[2, 3\], not float32\[3, 2\]", {**TREE, "matrix": jnp.zeros((3, 2))})


def test_another_dtype(stem):
    refused(stem, r"int32\[\], not float32\[\]", {**TREE, "count": jnp.zeros(())})


def test_other_names(stem):
    refused(stem, "other arrays than expected", {**TREE, "more": jnp.zeros(2)})
    refused(stem, "other arrays than expected", {"matrix": TREE["matrix"]})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(stem, value):
    rewritten(stem, **{"['scalar']": np.array(value, np.float32)})
    refused(stem, "not finite")


def test_writing_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_bytes(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                checkpoint.write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]  # and no temporary file behind it


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_not_a_number(tmp_path, value):
    path = tmp_path / "file.json"
    checkpoint.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        checkpoint.write_json(path, {"a": value})
    assert checkpoint.read_json(path) == {"a": 1}


def test_files_can_be_read_by_whom_the_system_lets(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    checkpoint.write_bytes(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
