"""Checkpoints: what is read is what was written, or an error in one line; never half a file."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hostile import forged
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
def path(tmp_path):
    checkpoint.save_tree(tmp_path / "state.safetensors", TREE, {"name": "probe"})
    return tmp_path / "state.safetensors"


def read(path, template=TREE):
    with checkpoint.opened(path) as saved:
        return saved.tree(template)


def refused(path, message, template=TREE):
    with pytest.raises(checkpoint.Damaged, match=message) as error:
        read(path, template)
    assert "\n" not in str(error.value)


def test_round_trip(path):
    found = read(path)
    assert jax.tree.structure(found) == jax.tree.structure(TREE)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(TREE), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_array_equal(ours, theirs)
    with checkpoint.opened(path) as saved:
        assert saved.description == {"name": "probe"}


def test_the_template_may_be_abstract(path):
    found = read(path, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE)))
    np.testing.assert_array_equal(found["transposed"], TREE["transposed"])


def test_any_program_can_read_the_arrays(path):
    np.testing.assert_array_equal(load_file(path)["['transposed']"], TREE["transposed"])
    assert [each.name for each in path.parent.iterdir()] == ["state.safetensors"]


def test_the_same_tree_gives_the_same_bytes(path, tmp_path):
    checkpoint.save_tree(tmp_path / "again", TREE, {"name": "probe"})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_every_bit_that_flips_is_noticed(path):
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        refused(path, "is damaged|is truncated|was not written by this program")


def test_every_byte_that_is_missing_is_noticed(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path, "is truncated")


def test_more_than_was_written(path):
    path.write_bytes(path.read_bytes() + b"0")
    refused(path, "is damaged: its arrays are not what was written")


@pytest.mark.parametrize("content", [b"PK\x03\x04" * 9, b"\0" * 100, b"\xff" * 9])
def test_a_foreign_file(path, content):
    path.write_bytes(content)
    refused(path, "was not written by this program")


def test_a_safetensors_file_of_another_program(path):
    save_file({"weight": np.zeros(3)}, path)
    refused(path, "was not written by this program, or by a version that wrote less than format")


def test_a_directory_in_its_place(tmp_path):
    refused(tmp_path, "cannot read .*: Is a directory")


def test_a_missing_file(path):
    path.unlink()
    refused(path, r"there is no state\.safetensors")


@pytest.mark.parametrize(
    ("written", "hint"), [(99, "install the version that"), (3, "train anew"), ("1", "train anew")]
)
def test_another_format(path, monkeypatch, written, hint):
    ours = checkpoint.FORMAT
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", written)
        checkpoint.save_tree(path, TREE, {})
    refused(path, f"has format {written!r}; this version reads {ours}: {hint}")


def test_another_shape(path):
    refused(path, r"float32\[2, 3\], not float32\[3, 2\]", {**TREE, "matrix": jnp.zeros((3, 2))})


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_another_dtype(path, dtype):
    checkpoint.save_tree(path, {**TREE, "count": np.zeros((), dtype)}, {})
    refused(path, rf"{np.dtype(dtype)}\[\], not int32\[\]")


def test_other_names(path):
    refused(path, "other arrays than expected", {**TREE, "more": jnp.zeros(2)})
    refused(path, "other arrays than expected", {"matrix": TREE["matrix"]})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(path, value):
    checkpoint.save_tree(path, {**TREE, "scalar": jnp.asarray(value)}, {})
    refused(path, "not finite")


def test_sizes_are_checked_before_anything_is_read(path):
    """A terabyte that is promised is neither read nor allocated."""
    entry = {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}
    forged(path, {}, b",\"['a']\":" + json.dumps(entry).encode())
    with path.open("ab") as file:
        file.truncate(2**40)  # which takes no room on the disk
    refused(path, r"is float32\[274877906944\], not float32\[2\]", {"a": jnp.zeros(2)})
    with path.open("r+b") as file:
        file.write((2**63).to_bytes(8, "little"))
    refused(path, "its head would have 9,223,372,036,854,775,808 bytes")


@pytest.mark.parametrize(
    "head",
    [
        b',"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}',
        b',"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}',
        b',"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}',
        b',"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}',
        b',"a":{"dtype":"os.system","shape":[2],"data_offsets":[0,8]}',
        b',"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}',
        b',"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}',
        b',"a":' + b"[" * 100_000,
        b',"a":7',
        b"",
    ],
)
def test_forged_heads(path, head):
    forged(path, {}, head, b"\0" * 8)
    refused(path, "is damaged|other arrays than expected", {"['a']": jnp.zeros(2)})
    refused(path, "is damaged|other arrays than expected", {"a": jnp.zeros(2)})


def test_the_last_two_checkpoints_are_kept(tmp_path):
    assert checkpoint.numbered(tmp_path / "none") == []
    for count in range(1, 13):
        checkpoint.save_numbered(tmp_path, {"a": np.float32(count)}, {"count": count})
    newest, before = checkpoint.numbered(tmp_path)
    assert [path.name for path in (newest, before)] == [
        "state-00000012.safetensors",
        "state-00000011.safetensors",
    ]
    with checkpoint.opened(newest) as saved:
        assert saved.description == {"count": 12}


def test_a_file_that_is_replaced_while_it_is_read_stays_itself(path):
    with checkpoint.opened(path) as saved:
        checkpoint.save_tree(path, {**TREE, "scalar": jnp.asarray(9.0)}, {"name": "other"})
        assert saved.tree(TREE)["scalar"] == 2.5
    assert read(path)["scalar"] == 9.0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 10, b"[" * 100_000, b"1" * 5000]
)
def test_damaged_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        checkpoint.read_json(tmp_path / "config.json")


def test_json_that_is_not_an_object_or_a_file(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UsageError, match="does not hold a JSON object"):
        checkpoint.read_json(tmp_path / "list.json")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        checkpoint.read_json(tmp_path)


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


def test_json_that_this_program_never_writes(tmp_path):
    path = tmp_path / "file.json"
    for text in ("NaN", "-Infinity", "1e999", str(2**63), 40 * "[" + 40 * "]"):
        path.write_text(f'{{"a": {text}}}')
        with pytest.raises(UsageError, match=r"file\.json is damaged"):
            checkpoint.read_json(path)
    path.write_text(f'{{"a": [{-(2**63)}, 1e308, [[[]]]]}}')
    assert checkpoint.read_json(path) == {"a": [-(2**63), 1e308, [[[]]]]}
