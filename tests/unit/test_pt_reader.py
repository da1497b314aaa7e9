"""What torch.save wrote is read exactly; what a hostile file says is neither run nor trusted."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import pt_reader
from model.pt_reader import PtCheckpoint
from model.safetensors_files import CheckpointError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "final.pt"


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def assert_reads(path: Path, expected: dict[str, torch.Tensor]) -> None:
    with PtCheckpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == list(expected)
        for name, tensor in expected.items():
            lazy = checkpoint.tensors[name]
            assert (lazy.shape, lazy.dtype) == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(lazy.read(), tensor)
            assert torch.equal(torch.cat(list(lazy.pieces()) or [tensor.reshape(-1)]), tensor.reshape(-1))


@pytest.mark.parametrize("dtype", sorted(set(pt_reader.STORAGE_DTYPES.values()), key=str))
def test_every_dtype_is_read_exactly(path, dtype):
    tensors = {"a": (torch.randn(3, 5) * 40).to(dtype), "b": torch.ones(1).to(dtype)}
    assert_reads(saved(path, {"model": tensors, "args": argparse.Namespace(x=1)}), tensors)


def test_views_of_one_storage_are_read_as_they_are(path):
    base = torch.randn(6, 8)
    views = {"t": base.t(), "rows": base[2:4], "step": base[::2, 1::3], "all": base, "one": base[3, 4]}
    views["expanded"] = base[0, :1].expand(5, 1)
    assert_reads(saved(path, {"model": views}), views)


def test_parameters_empty_tensors_and_ordered_dicts(path):
    module = torch.nn.Linear(3, 2)
    state = module.state_dict()
    assert isinstance(state, OrderedDict)
    state["parameter"] = torch.nn.Parameter(torch.randn(4))
    state["empty"] = torch.empty(0, 7)
    assert_reads(saved(path, {"model": state}), state)


def test_a_state_dict_at_the_top_level_is_found(path):
    state = torch.nn.Linear(3, 2).state_dict()
    assert_reads(saved(path, state), state)


def test_pieces_are_bounded_and_in_order(path, monkeypatch):
    monkeypatch.setattr(pt_reader, "PIECE_BYTES", 64)
    tensor = torch.arange(37, dtype=torch.float32)
    with PtCheckpoint(saved(path, {"model": {"a": tensor}})) as checkpoint:
        pieces = list(checkpoint.tensors["a"].pieces())
    assert [piece.numel() for piece in pieces] == [16, 16, 5]
    assert torch.equal(torch.cat(pieces), tensor)


def test_what_is_no_tensor_in_the_state_dict_is_named(path):
    saved(path, {"model": {"w": torch.ones(1), "args": argparse.Namespace()}})
    with pytest.raises(CheckpointError, match=r"'args'.*no tensor but argparse\.Namespace"):
        PtCheckpoint(path)


# hostile files


def write_archive(path: Path, data: bytes, storages: dict[str, bytes] | None = None, **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("final/data.pkl", data)
        for key, content in (storages or {}).items():
            archive.writestr(f"final/data/{key}", content)
        for name, content in extra.items():
            archive.writestr(f"final/{name}", content)
    return path


def tensor_pickle(
    numel="K\x04", offset="K\x00", shape="(K\x02K\x02t", stride="(K\x02K\x01t", extra=""
) -> bytes:
    """{"model": {"w": a tensor}}, with `extra` opcodes whose value is another entry."""
    storage = f"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu{numel}tQ"
    tensor = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}{offset}{shape}{stride}I00\n}}tR"
    entry = f"U\x05extra{extra}s" if extra else ""
    return f"\x80\x02}}U\x05model}}U\x01w{tensor}ss{entry}.".encode("latin-1")


FLOATS = torch.arange(4, dtype=torch.float32).numpy().tobytes()


class RunsOnLoad:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_values(marker: Path) -> dict[str, bytes]:
    """Opcodes that leave one value on the stack and would, in Python's own unpickler, create `marker`."""
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    text = f"X{chr(len(touch))}\0\0\0{touch}"
    python = f"X{chr(len(code))}\0\0\0{code}"
    values = {
        "reduce": f"cos\nsystem\n({text}tR",
        "eval": f"cbuiltins\neval\n({python}tR",
        "inst": f"({text}ios\nsystem\n",
        "obj": f"(cos\nsystem\n{text}o",
        "newobj": f"csubprocess\nPopen\n({text}t\x81",
        "newobj_ex": f"csubprocess\nPopen\n({text}t}}\x92",
        "nested": f"\x8c\x08builtins\x8c\x0deval.__call__\x93({python}tR",
        "import": "chostile_module\nThing\n)R",
        "build": f"chostile_module\nThing\n)\x81}}U\x09__class__{text}sb",
        "reconstructor": "ccopyreg\n_reconstructor\n(chostile_module\nThing\nc__builtin__\nobject\nNtR",
        "append": f"chostile_module\nThing\n)\x81({text}e",
        "setitems": f"chostile_module\nThing\n)\x81({text}K\x01u",
        "extension": "\x82\x01",
    }
    return {name: value.encode("latin-1") for name, value in values.items()}


@pytest.mark.parametrize("name", sorted(hostile_values(Path("x"))))
def test_nothing_in_the_pickle_runs_or_is_imported(path, tmp_path, monkeypatch, name):
    marker = tmp_path / "ran"
    module = tmp_path / "hostile_module.py"
    module.write_text(f"open({str(marker)!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    extra = hostile_values(marker)[name].decode("latin-1")
    write_archive(path, tensor_pickle(extra=extra), {"0": FLOATS})
    with PtCheckpoint(path) as checkpoint:
        assert checkpoint.tensors["w"].read().tolist() == [[0, 1], [2, 3]]
    assert not marker.exists()
    assert "hostile_module" not in set(sys.modules) - before


def test_the_hostile_pickles_would_run_elsewhere(tmp_path, monkeypatch):
    """The payloads above are real: Python's own unpickler does run one of each kind."""
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("reduce", "inst", "obj"):
        marker = tmp_path / f"{name}.ran"
        pickle.loads(b"\x80\x02" + hostile_values(marker)[name] + b".")
        assert marker.exists()
    with pytest.raises(AttributeError):
        pickle.loads(b"\x80\x02" + hostile_values(tmp_path / "x")["import"] + b".")
    assert (tmp_path / "imported").exists()
    sys.modules.pop("hostile_module", None)


def test_a_hostile_object_in_place_of_a_tensor_is_refused(path, tmp_path):
    marker = tmp_path / "ran"
    torch.save({"model": {"w": RunsOnLoad(marker.touch)}}, path)
    with pytest.raises(CheckpointError, match="'w' in the state dict is no tensor"):
        PtCheckpoint(path)
    assert not marker.exists()


BOMBS = {
    "memo index of two billion": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "string of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
    "bytes of many terabytes": b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc.",
    "bytearray of many terabytes": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0fabc.",
    "frame of many terabytes": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "key that doubles at each level": b"\x80\x02})" + b"2\x86" * 5000 + b"Ns.",
    "key nested without end": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "lists nested without end": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "empty": b"",
    "no stop": b"\x80\x02}",
    "empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "odd dict": b"\x80\x02(Nd.",
    "unset memo": b"\x80\x02h\x07.",
    "unknown opcode": b"\x80\x02\xff.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "persistent id that is no storage": b"\x80\x02K\x01Q.",
    "persistent id as text": b"\x80\x02Psomething\n.",
    "tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "name that doubles with each global": b"\x80\x04" + b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"\x94"
    + b"h\x00h\x00\x93" * 5000 + b"l.",
    "storage of a number beyond print": b"\x80\x04(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu"
    + b"\x8b\xb8\x0b\x00\x00" + b"\x7f" * 3000 + b"tQ.",
    "number of too many digits": b"\x80\x02L" + b"9" * 10_000 + b"L\n.",
}


@pytest.mark.parametrize("name", sorted(BOMBS))
@pytest.mark.timeout(10)
def test_garbage_is_refused_quickly(path, name):
    write_archive(path, BOMBS[name])
    with pytest.raises(CheckpointError, match=r"final\.pt"):
        PtCheckpoint(path)


OUTSIDE = {
    "offset": {"offset": "K\x01"},
    "stride": {"stride": "(K\x03K\x01t"},
    "shape": {"shape": "(K\x02K\x03t"},
    "negative stride": {"stride": "(J\xff\xff\xff\xffK\x01t"},
    "negative offset": {"offset": "J\xfe\xff\xff\xff"},
    "negative size": {"shape": "(J\xff\xff\xff\xffK\x01t"},
    "boolean size": {"shape": "(I01\nK\x02t"},
    "text as size": {"shape": "(U\x012K\x02t"},
    "too few strides": {"stride": "(K\x01t"},
    "size beyond 64 bits": {"shape": f"(\x8a\x09{chr(0) * 8}\x01K\x02t", "stride": "(K\x00K\x00t"},
    "storage larger than its entry": {"numel": "K\x05"},
    "storage smaller than its entry": {"numel": "K\x03"},
    "storage of negative size": {"numel": "J\xfc\xff\xff\xff"},
}


@pytest.mark.parametrize("name", sorted(OUTSIDE))
def test_tensors_stay_inside_of_their_storage(path, name):
    write_archive(path, tensor_pickle(**OUTSIDE[name]), {"0": FLOATS})
    with pytest.raises(CheckpointError, match=r"final\.pt"):
        PtCheckpoint(path)


def test_a_tensor_that_repeats_its_elements_is_none_of_a_model(path):
    """1.4 kB could stand for terabytes."""
    write_archive(path, tensor_pickle(shape="(J\x00\x00\x00\x04K\x02t", stride="(K\x00K\x00t"), {"0": FLOATS})
    with pytest.raises(CheckpointError, match=r"is no tensor but expanded\.tensor"):
        PtCheckpoint(path)


def test_a_storage_without_its_entry_is_refused(path):
    with pytest.raises(CheckpointError, match="final/data/0 is missing"):
        PtCheckpoint(write_archive(path, tensor_pickle()))


def test_big_endian_numbers_are_refused(path):
    write_archive(path, tensor_pickle(), {"0": FLOATS}, byteorder=b"big")
    with pytest.raises(CheckpointError, match="little-endian"):
        PtCheckpoint(path)


@pytest.mark.parametrize("compressed", ["final/data.pkl", "final/data/0"])
def test_compressed_entries_are_refused(path, compressed):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("final/data.pkl", tensor_pickle()), ("final/data/0", FLOATS)):
            kind = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            archive.writestr(name, content, compress_type=kind)
    with pytest.raises(CheckpointError, match=f"{compressed} is compressed"):
        PtCheckpoint(path)


def test_two_pickles_or_none_are_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/file", b"")
    with pytest.raises(CheckpointError, match=r"0 entries are called data\.pkl"):
        PtCheckpoint(path)


def test_files_that_are_no_zip_are_refused(path):
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before torch 1\.6"):
        PtCheckpoint(path)
    with pytest.raises(CheckpointError, match="No such file"):
        PtCheckpoint(path.with_name("missing"))


def test_a_cut_file_is_refused_wherever_it_is_cut(path):
    whole = saved(path, {"model": {"a": torch.randn(64)}}).read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            PtCheckpoint(path)


def test_a_file_cut_after_opening_is_noticed(path):
    saved(path, {"model": {"a": torch.randn(50_000)}})
    with PtCheckpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(CheckpointError, match="ends within"):
            checkpoint.tensors["a"].read()


@pytest.mark.parametrize("field", [b"\xf0\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01\0\0\0"])
@pytest.mark.parametrize("place", [b"PK\x01\x02" + b".{38}", b"PK\x05\x06" + b".{12}"], ids=["entry", "end"])
def test_entries_that_are_not_where_the_directory_says_are_refused(path, place, field):
    """The offset of one entry, or of the directory itself, which shifts all entries below zero."""
    whole = write_archive(path, tensor_pickle(), {"0": FLOATS}).read_bytes()
    moved = re.sub(b"(?s)(" + place + b").{4}", lambda match: match[1] + field, whole, count=1)
    assert moved != whole
    path.write_bytes(moved)
    with pytest.raises(CheckpointError):
        PtCheckpoint(path)


def test_an_entry_that_reaches_past_the_end_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("final/data.pkl", tensor_pickle(numel="K\x80"))
        archive.writestr("final/data/0", FLOATS)
        entry = archive.getinfo("final/data/0")
        entry.file_size = entry.compress_size = 128 * 4
    with pytest.raises(CheckpointError, match="final/data/0 reaches past the end"):
        PtCheckpoint(path)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("fuzz") / "f.pt", {"model": {"a": torch.randn(4, 4).t()}})


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), length=st.integers(1, 4))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_damaged_file_reads_or_is_refused(small_file, place, byte, length):
    content = bytearray(small_file.read_bytes())
    start = int(place * len(content))
    content[start : start + length] = bytes([byte]) * length
    damaged = small_file.with_name("damaged.pt")
    damaged.write_bytes(content)
    try:
        with PtCheckpoint(damaged) as checkpoint:
            for tensor in checkpoint.tensors.values():
                if tensor.num_items < 10_000:
                    tensor.read()
    except CheckpointError:
        pass
