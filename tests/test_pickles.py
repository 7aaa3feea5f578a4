"""Pickles of arrays are read without running what they name."""

import contextlib
import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from ltx_jax.checkpoints import pickles

TREE = {
    "params": {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "big": np.arange(3, dtype=">i4"),
    "columns": np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
}


def equal(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(actual[name], value)
            assert actual[name].dtype == value.dtype
        else:
            equal(actual[name], value)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nested_arrays_are_read(tmp_path, protocol):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(TREE, protocol))
    if protocol == 2:  # whose bytes are text that a function of a module decodes
        with pytest.raises(ValueError, match=r"it names _codecs\.encode"):
            pickles.read_arrays(tmp_path / "a.ckpt")
    else:
        equal(pickles.read_arrays(tmp_path / "a.ckpt"), TREE)


def test_legacy_tensors_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    whole = torch.arange(24, dtype=torch.float32)
    content = OrderedDict(
        a=whole.reshape(4, 6), part=whole[3:5], turned=whole.reshape(4, 6).T, count=torch.tensor(7)
    )
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    equal(
        pickles.read_legacy_tensors(tmp_path / "a.pth"),
        {name: value.numpy() for name, value in content.items()},
    )
    torch.save(content, tmp_path / "new.pth")
    with pytest.raises(ValueError, match=r"new\.pth cannot be read"):
        pickles.read_legacy_tensors(tmp_path / "new.pth")
    stored = (tmp_path / "a.pth").read_bytes()
    for length in range(0, len(stored) - 1, 7):
        (tmp_path / "cut.pth").write_bytes(stored[:length])
        with pytest.raises(ValueError, match=r"cut\.pth cannot be read"):
            pickles.read_legacy_tensors(tmp_path / "cut.pth")


class Hostile:
    """Makes a file when it is unpickled as usual."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("read", [pickles.read_arrays, pickles.read_legacy_tensors])
def test_what_a_pickle_names_is_not_run(tmp_path, read):
    target = str(tmp_path / "hacked")
    hostile = pickle.dumps({"a": Hostile(target)}, 4)
    prefix = b"".join(
        pickle.dumps(x, 2) for x in (pickles._MAGIC, pickles._PROTOCOL, {"little_endian": True})
    )
    (tmp_path / "a").write_bytes(hostile if read is pickles.read_arrays else prefix + hostile)
    with pytest.raises(ValueError, match=r"it names posix\.mkdir, which may run code"):
        read(tmp_path / "a")
    assert not os.path.exists(target)
    pickle.load(io.BytesIO(hostile))
    assert os.path.exists(target)


def test_objects_in_arrays_and_other_content_are_refused(tmp_path):
    for content, message in (
        ({"a": np.array([{}, {}])}, "dtype O8"),
        ([1, 2], "holds a list, not a dictionary"),
        ({"a": 3}, "holds a int, not a dictionary"),
    ):
        (tmp_path / "a").write_bytes(pickle.dumps(content, 4))
        with pytest.raises(ValueError, match=message):
            pickles.read_arrays(tmp_path / "a")
    with pytest.raises(ValueError, match="is no file"):
        pickles.read_arrays(tmp_path / "nothing")


def test_damage_raises_no_other_error(tmp_path):
    stored = pickle.dumps(TREE, 4)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(stored)
        for place in rng.integers(len(stored), size=3):
            damaged[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(bytes(damaged))
        with contextlib.suppress(ValueError):  # no other error
            pickles.read_arrays(tmp_path / "a")
