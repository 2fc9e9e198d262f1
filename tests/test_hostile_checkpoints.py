"""Checkpoints as an attack, or merely damaged: one sentence that names the file and the tensor, no code run, no memory used."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import content_id
from safetensors.torch import save, save_file
from samkit.nodes.model import SAMModelLoader
from samkit.sam import SAM_MODELS, SAMError, load_model, load_shared

ROOT = Path(__file__).resolve().parent.parent
NAMED = "mask_decoder.iou_token.weight"


def refusal_of(path):
    """The message; it must be one line, name the file, and come before any memory worth the name is used."""
    tracemalloc.start()
    try:
        with pytest.raises(SAMError) as caught:
            load_model(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    assert Path(path).name[:50] in text
    assert peak < 100e6
    return text


# What becomes of a file does not reach a model that was loaded from it.

CHANGES = """
import os, sys
sys.path.insert(0, {tools!r})
from load_pack import load_pack
load_pack()
import torch
from samkit.sam import identity_of, load_model
def overwrite(path):
    with open(path, "r+b") as file:
        file.write(os.urandom(os.path.getsize(path)))
def cut(path):
    os.truncate(path, 0)
models = [(load_model(path), change, path) for path, change in zip(sys.argv[1:], [overwrite, cut] * 3)]
for model, change, path in models:
    change(path)
for model, change, path in models:
    print(identity_of(model), float(sum(value.sum() for value in model.parameters())))
"""


def test_a_file_that_changes_under_a_loaded_model_changes_nothing(tiny_sam, tmp_path):
    """In a process of its own: what used to come of it was the signal SIGBUS."""
    paths = [str(tmp_path / f"{number}.{kind}") for kind in ("zip", "legacy", "safetensors") for number in range(2)]
    for path in paths:
        if path.endswith("safetensors"):
            save_file(tiny_sam.state_dict(), path)
        else:
            torch.save(tiny_sam.state_dict(), path, _use_new_zipfile_serialization=path.endswith("zip"))
    code = CHANGES.format(tools=str(ROOT / "tools"))
    ran = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(paths) and len(set(lines)) == 1
    identity, total = lines[0].split()
    assert identity == content_id(tiny_sam)
    assert float(total) == pytest.approx(float(sum(value.sum() for value in tiny_sam.parameters())))


def test_a_file_that_changes_while_it_is_read_is_refused(tiny_sam, tmp_path, monkeypatch):
    path = tmp_path / "sam.safetensors"
    save_file(tiny_sam.state_dict(), path)
    from samkit.sam.weights import checkpoint_reader

    read = checkpoint_reader.read_safetensors

    def meanwhile(file, name):
        found = read(file, name)
        with path.open("ab") as more:
            more.write(b"1")
        return found

    monkeypatch.setattr(checkpoint_reader, "read_safetensors", meanwhile)
    assert "was changed while it was read" in refusal_of(path)


# Damaged files.


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_cut_file_is_refused_wherever_it_is_cut(tiny_sam, tmp_path, kind):
    state, content = {"image_encoder.pos_embed": torch.ones(3)}, io.BytesIO()
    if kind == "safetensors":
        content.write(save(state))
    else:
        torch.save(state, content, _use_new_zipfile_serialization=kind == "zip")
    whole = content.getvalue()
    for length in range(len(whole)):
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(whole[:length])
        with pytest.raises(SAMError, match="cut"):
            load_model(path)


def test_any_changed_byte_loads_or_is_refused(tiny_sam, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("zip", "legacy", "safetensors"):
        content = io.BytesIO()
        if kind == "safetensors":
            content.write(save({"image_encoder.pos_embed": torch.ones(3)}))
        else:
            torch.save({"image_encoder.pos_embed": torch.ones(3)}, content, _use_new_zipfile_serialization=kind == "zip")
        for place in rng.permutation(len(content.getvalue()))[:150]:
            changed = bytearray(content.getvalue())
            changed[place] ^= int(rng.integers(1, 256))
            (tmp_path / "changed.pth").write_bytes(changed)
            with pytest.raises(SAMError):
                load_model(tmp_path / "changed.pth")


# Headers of safetensors.


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "a length past the file": safetensors({"a": entry()}, b"1234", length=1 << 62),
    "no JSON": safetensors(b"{nothing}"),
    "deep JSON": safetensors(b"[" * 100_000),
    "a list": safetensors([]),
    "an entry that is not an object": safetensors({"a": 1}),
    "an unknown dtype": safetensors({"a": entry("F5")}, b"1234"),
    "a list as dtype": safetensors({"a": entry([])}, b"1234"),
    "a negative length": safetensors({"a": entry(shape=(-1,))}, b"1234"),
    "a fraction": safetensors({"a": entry(shape=(1.0,))}, b"1234"),
    "true": safetensors({"a": entry(shape=(True,))}, b"1234"),
    "a number of 400 digits": safetensors({"a": entry(shape=(10**400,))}, b"1234"),
    "an absurd shape": safetensors({"a": entry(shape=(1 << 40, 1 << 40), offsets=(0, 1 << 82))}, b"1234"),
    "data past the file": safetensors({"a": entry(shape=(1 << 30,), offsets=(0, 4 << 30))}, b"1234"),
    "offsets that go back": safetensors({"a": entry(offsets=(4, 0))}, b"1234"),
    "two that overlap": safetensors({"a": entry(), "b": entry()}, b"1234"),
    "a gap": safetensors({"a": entry(offsets=(4, 8))}, b"12345678"),
    "a name twice": safetensors(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), b"1234"),
    "too little": safetensors({"a": entry()}, b"123"),
    "too much": safetensors({"a": entry()}, b"12345"),
    "three offsets": safetensors({"a": entry(offsets=(0, 1, 4))}, b"1234"),
    "many dimensions": safetensors({"a": entry(shape=(1,) * 100_000)}, b"1234"),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_header_that_does_not_fit_is_refused(tmp_path, fault):
    (tmp_path / "bad.safetensors").write_bytes(HEADERS[fault])
    assert "neither a PyTorch nor a safetensors file" in refusal_of(tmp_path / "bad.safetensors")


def test_a_header_of_200000_tensors_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    header = {f"t{i}": entry(offsets=(4 * i, 4 * i + 4)) for i in range(200_000)}
    (tmp_path / "many.safetensors").write_bytes(safetensors(header, bytes(800_000)))
    monkeypatch.setattr("samkit.sam.weights.safetensors_file.json.loads", lambda *_, **__: pytest.fail("it was parsed"))
    assert "more than 10000 tensors" in refusal_of(tmp_path / "many.safetensors")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_of_very_many_tensors_is_refused_before_it_is_loaded(tmp_path, monkeypatch, zipped):
    state = {f"t{i}": torch.zeros(1) for i in range(10_001)}
    torch.save(state, tmp_path / "many.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    assert "more than 10000 tensors" in refusal_of(tmp_path / "many.pth")


def test_a_file_larger_than_any_sam_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "huge.safetensors"
    size = 1 << 40
    path.write_bytes(safetensors({"a": entry(shape=(size // 4,), offsets=(0, size))}))
    os.truncate(path, path.stat().st_size + size)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was used"))
    assert "it has 1100 GB" in refusal_of(path)


def test_the_own_reader_reads_what_the_library_writes(tmp_path):
    state = {
        str(dtype): torch.arange(24).reshape(2, 3, 4).to(dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    } | {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    save_file(state, tmp_path / "all.safetensors", metadata={"format": "pt"})
    from samkit.sam.weights.checkpoint_reader import read_checkpoint

    found = read_checkpoint(tmp_path / "all.safetensors")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape and torch.equal(found[name], value), name


# Pickles, and zips of them.


class Touch:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


class Bytes:
    def __reduce__(self):
        return bytearray, (200_000_000,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["bomb.pth", "bomb.pt", "bomb.safetensors"])
def test_no_pickle_of_any_protocol_runs(tmp_path, protocol, name):
    path, target = tmp_path / name, tmp_path / "ran"
    content = {"image_encoder.patch_embed.proj.weight": Touch(str(target))}
    path.write_bytes(pickle.dumps(content, protocol))
    refusal_of(path)
    for zipped in (True, False):
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        refusal_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        inner = io.BytesIO()
        torch.save(content, inner, pickle_protocol=protocol)
        archive.writestr("archive/data.pkl", inner.getvalue())
        archive.writestr("inner.pth", inner.getvalue())
    refusal_of(path)
    assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code_beside_the_weights_loads_and_does_not(tiny_sam, tmp_path, zipped):
    target = tmp_path / "ran"
    content = {"first": Touch(str(target)), "model": tiny_sam.state_dict(), "memory": Bytes(), "last": [Touch(str(target))]}
    torch.save(content, tmp_path / "bomb.pth", _use_new_zipfile_serialization=zipped)
    tracemalloc.start()
    assert load_model(tmp_path / "bomb.pth").identity == content_id(tiny_sam)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_only_asks_for_memory_gets_none(tmp_path, zipped):
    torch.save({"a": Bytes()}, tmp_path / "greedy.pth", _use_new_zipfile_serialization=zipped)
    assert "bytearray" in refusal_of(tmp_path / "greedy.pth")


def test_a_tensor_that_is_larger_than_its_file_is_refused(tiny_sam, tmp_path):
    """A stride of 0 makes any size of four bytes; its sum, or a copy of it, would take all memory."""
    held = sum(4 * value.numel() for name, value in tiny_sam.state_dict().items() if name != NAMED)
    for zipped in (True, False):
        state = tiny_sam.state_dict() | {NAMED: torch.zeros(1).expand(1 << 20, 1 << 20)}
        torch.save(state, tmp_path / "wide.pth", _use_new_zipfile_serialization=zipped)
        assert f"would need {(1 << 42) + held} bytes of memory" in refusal_of(tmp_path / "wide.pth")
    torch.save({"model": tiny_sam.state_dict(), "wide": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "beside.pth")
    assert load_model(tmp_path / "beside.pth").identity == content_id(tiny_sam), "what is not used takes none"


# The machine that reads pickles, on programs that no pickler writes.


def program(*parts):
    """A file of torch.save whose pickle is this program."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join((b"\x80\x02", *parts, b".")))
        archive.writestr("archive/data/0", bytes(16))
    return content.getvalue()


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor_of(offset=b"K\x00", size=b"K\x04\x85", stride=b"K\x01\x85", storage=STORAGE):
    return REBUILD + b"(" + storage + offset + size + stride + b"\x89NtR"


PROGRAMS = {
    "a billion ways to one list": (
        b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(30)),
        "does not hold a dict of tensors",
    ),
    "a place in the memo that would take 64 GB": (b"Nr\xff\xff\xff\xff}", "does not hold a dict of tensors"),
    "a text of an exabyte": (b"\x8d" + (1 << 60).to_bytes(8, "little") + b"abc", "truncated or damaged"),
    "bytes of an exabyte": (b"\x8e" + (1 << 60).to_bytes(8, "little") + b"abc", "truncated or damaged"),
    "a whole number of a gigabyte": (b"\x8b\x00\x00\x00\x40abc", "truncated or damaged"),
    "a list of 3,000 lists that are one list of 3,000": (
        b"]q\x00]q\x01(" + b"h\x00" * 3000 + b"e](" + b"h\x01" * 3000 + b"e",
        "does not hold",
    ),
    "a key that is a tuple, 200,000 deep": (b"}" + b")" + b"\x85" * 200_000 + b"Ns", "does not hold a dict of tensors"),
    "lists 100,000 deep": (b"]" * 100_000 + b"a" * 99_999, "does not hold a dict of tensors"),
    "an empty stack": (b"0000", "truncated or damaged"),
    "a mark that is not there": (b"t", "truncated or damaged"),
    "a memo that is not there": (b"h\x07", "truncated or damaged"),
    "an unknown opcode": (b"\xff", "truncated or damaged"),
    "an extension": (b"\x82\x01", "is an object of the extension EXT1"),
    "a storage that is larger than its bytes": (tensor_of(storage=STORAGE.replace(b"K\x04", b"K\x05")), "in 16 bytes"),
    "a storage of another type": (tensor_of(storage=STORAGE.replace(b"Float", b"Wrong")), "truncated or damaged"),
    "a storage that is not there": (tensor_of(storage=STORAGE.replace(b"\x000X", b"\x001X")), "truncated or damaged"),
    "a storage of a negative number": (tensor_of(storage=STORAGE.replace(b"K\x04", b"J\xff\xff\xff\xff")), "elements"),
    "a tensor that begins after its storage": (tensor_of(offset=b"K\x05"), "in a storage of 4"),
    "a tensor that begins before its storage": (tensor_of(offset=b"J\xff\xff\xff\xff"), "truncated or damaged"),
    "a tensor that ends after its storage": (tensor_of(size=b"K\x05\x85"), "in a storage of 4"),
    "a negative stride": (tensor_of(stride=b"J\xff\xff\xff\xff\x85"), "truncated or damaged"),
    "a shape that is a text": (tensor_of(size=b"X\x01\x00\x00\x00a"), "truncated or damaged"),
    "a tensor of a text": (tensor_of(storage=b"X\x01\x00\x00\x00a"), "truncated or damaged"),
    "a call of a tensor": (tensor_of() + b")R", "is an object of Tensor"),
    "a call of a function of torch": (b"ctorch\nempty\nI1000000000000\n\x85R", "is an object of torch.empty"),
    "a call of eval": (b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R", "is an object of builtins.eval"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_in_a_pickle_is_refused_and_costs_nothing(tmp_path, kind):
    content, said = PROGRAMS[kind]
    (tmp_path / "odd.pth").write_bytes(program(content))
    assert said in refusal_of(tmp_path / "odd.pth")


def test_the_machine_reads_the_tensor_that_those_programs_change(tmp_path):
    from samkit.sam.weights.checkpoint_reader import read_checkpoint

    (tmp_path / "good.pth").write_bytes(program(tensor_of()))
    assert torch.equal(read_checkpoint(tmp_path / "good.pth"), torch.zeros(4))


def test_a_pickle_of_very_many_steps_is_refused(tmp_path, monkeypatch):
    """An empty dict is one byte of a file and 64 of memory."""
    monkeypatch.setattr("samkit.sam.weights.pickles._MOST_STEPS", 10_000)
    (tmp_path / "many.pth").write_bytes(program(b"(" + b"}" * 20_000 + b"l"))
    assert "more than 10000 steps" in refusal_of(tmp_path / "many.pth")


def rezipped(source, target, **changes):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            compression = changes.get("compression", zipfile.ZIP_STORED)
            new.writestr(member.filename, old.read(member), compress_type=compression)
            if changes.get("twice"):
                new.writestr(member.filename, old.read(member))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_bomb_is_refused(tmp_path):
    torch.save({NAMED: torch.zeros(50_000_000)}, tmp_path / "source.pth")
    rezipped(tmp_path / "source.pth", tmp_path / "bomb.pth", compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 1e6
    assert "it is compressed" in refusal_of(tmp_path / "bomb.pth")
    torch.save({NAMED: torch.zeros(5)}, tmp_path / "source.pth")
    rezipped(tmp_path / "source.pth", tmp_path / "twice.pth", twice=True)
    assert "two of its parts have the same name" in refusal_of(tmp_path / "twice.pth")


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    assert "it is a TorchScript program" in refusal_of(tmp_path / "program.pt")


# Tensors.


def saved(tiny_sam, path, name=NAMED, change=lambda value: value):
    state = {key: change(value.clone()) if key == name else value for key, value in tiny_sam.state_dict().items()}
    torch.save(state, path)
    return path


def quantized(value):
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


TENSORS = {
    "int8": (lambda value: value.to(torch.int8), "holds int8, and a weight must be floating point"),
    "bool": (lambda value: value > 0, "holds bool, and"),
    "int64": (lambda value: value.long(), "holds int64, and"),
    "complex": (lambda value: value.to(torch.complex64), "holds complex64, and"),
    "sparse": (lambda value: value.to_sparse(), "is not dense"),
    "sparse rows": (lambda value: value.to_sparse_csr(), "is not dense"),
    "quantized": (quantized, "is quantized"),
    "meta": (lambda value: value.to("meta"), "has no values"),
    "empty": (lambda value: value[:0], "has no values"),
    "NaN": (lambda value: value.index_fill_(1, torch.tensor([3]), float("nan")), "has NaN or infinite values (1 of 32)"),
    "infinite": (lambda value: value.fill_(float("-inf")), "has NaN or infinite values (32 of 32)"),
    "past float32": (lambda value: value.double() + 1e300, "has NaN or infinite values (32 of 32)"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantiz", "ignore:.*prototype")
@pytest.mark.parametrize("kind", TENSORS)
def test_what_is_not_a_weight_is_refused_by_name(tiny_sam, tmp_path, kind):
    change, said = TENSORS[kind]
    text = refusal_of(saved(tiny_sam, tmp_path / "odd.pth", change=change))
    assert f"odd.pth was not loaded: its tensor {NAMED} {said}" in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_other_floating_point_is_converted(tiny_sam, tmp_path, dtype, kind):
    state = {name: value.to(dtype) for name, value in tiny_sam.state_dict().items()}
    torch.save(state, tmp_path / "sam.pth")
    save_file(state, tmp_path / "sam.safetensors")
    found = load_model(tmp_path / f"sam.{kind}").state_dict()
    for name, value in state.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], value.float()), name


def test_large_finite_weights_are_not_taken_for_infinite(tiny_sam, tmp_path):
    path = saved(tiny_sam, tmp_path / "large.pth", change=lambda value: value.fill_(3e38))
    assert load_model(path).state_dict()[NAMED].max() == torch.tensor(3e38)


def test_tensors_that_are_not_contiguous_or_share_memory_load_as_they_are(tiny_sam, tmp_path):
    whole = torch.randn(1000, 1000)
    state = {name: value.clone() for name, value in tiny_sam.state_dict().items()}
    columns = state["image_encoder.blocks.0.mlp.lin1.weight"]
    state["image_encoder.blocks.0.mlp.lin1.weight"] = columns.t().contiguous().t()
    state[NAMED] = whole[5:6, :32]
    torch.save(state, tmp_path / "views.pth")
    model = load_model(tmp_path / "views.pth")
    for name, value in state.items():
        found = model.state_dict()[name]
        assert torch.equal(found, value) and found.is_contiguous(), name
        assert found.untyped_storage().nbytes() == found.numel() * 4, "the rest of a shared storage is not kept"


def test_a_big_endian_file_loads(tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "little.pth")
    with zipfile.ZipFile(tmp_path / "little.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if "/data/" in member.filename:
                content = np.frombuffer(content, "<f4").astype(">f4").tobytes()
            new.writestr(member.filename, b"big" if member.filename.endswith("byteorder") else content)
    assert load_model(tmp_path / "big.pth").identity == content_id(tiny_sam)


NAMES = {
    "a very long name": (
        lambda state: state | {"mask_decoder." + "x" * 100_000: torch.zeros(1)},
        "the name of a tensor has 100013 characters",
    ),
    "a line break": (lambda state: state | {"mask_decoder.a\nb": torch.zeros(1)}, "cannot be printed (mask_decoder.a?b)"),
    "a billionth block": (
        lambda state: state | {"mask_decoder.transformer.layers.1000000000.norm1.weight": torch.zeros(1)},
        "no SAM has as many blocks",
    ),
    "a million mask tokens": (
        lambda state: state | {"mask_decoder.mask_tokens.weight": torch.zeros(1_000_000, 1)},
        "has 1000000 rows; a SAM has four or five",
    ),
    "heads of no width": (
        lambda state: state | {f"image_encoder.blocks.{i}.attn.rel_pos_h": torch.zeros(15, 999) for i in range(3)},
        "do not fit together",
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_absurd_names_and_shapes_are_refused(tiny_sam, tmp_path, kind):
    change, said = NAMES[kind]
    torch.save(change(dict(tiny_sam.state_dict())), tmp_path / "absurd.pth")
    assert said in refusal_of(tmp_path / "absurd.pth")


BESIDE = {"a number as name": 0, "a very long name": "x" * 100_000, "a line break": "a\nb", "a dot": ".", "nothing": ""}


@pytest.mark.parametrize("kind", BESIDE)
def test_absurd_names_beside_a_model_are_ignored(tiny_sam, tmp_path, kind):
    torch.save(dict(tiny_sam.state_dict()) | {BESIDE[kind]: torch.zeros(1)}, tmp_path / "absurd.pth")
    assert load_model(tmp_path / "absurd.pth").identity == content_id(tiny_sam)


SHAPES = [(), (1,), (3, 5), (1, 1, 1, 1), (2, 3, 4, 5, 6)]


def test_each_weight_is_refused_in_another_shape(tiny_sam, tmp_path):
    """So that whatever the architecture is read from is met."""
    state = tiny_sam.state_dict()
    for number, name in enumerate(state):
        shape = next(shape for shape in SHAPES[number % 5 :] + SHAPES if len(shape) != state[name].ndim)
        save_file(state | {name: torch.zeros(shape)}, tmp_path / "odd.safetensors")
        with pytest.raises(SAMError, match="odd.safetensors"):
            load_model(tmp_path / "odd.safetensors")


def test_each_missing_weight_is_noticed(tiny_sam, tmp_path):
    state = tiny_sam.state_dict()
    for gone in state:
        save_file({name: value for name, value in state.items() if name != gone}, tmp_path / "less.safetensors")
        with pytest.raises(SAMError, match="less.safetensors"):
            load_model(tmp_path / "less.safetensors")


# Names of files.


@pytest.mark.parametrize("name", ["x" * 300 + ".pth", "a/" * 3000 + "b.pth", "../secret.pth", "/etc/passwd", "a\0b.pth"])
def test_a_name_that_no_folder_has_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    (tmp_path / "models").mkdir()
    torch.save({}, tmp_path / "models" / "secret.pth")
    with pytest.raises(SAMError, match="there is no checkpoint"):
        SAM_MODELS.find(name).fetch()
    assert SAMModelLoader.IS_CHANGED(name) == ""


def test_a_path_that_no_system_takes_is_refused(tmp_path):
    for load in (load_model, load_shared):
        with pytest.raises(SAMError, match=r"cannot be read|no file"):
            load(tmp_path / ("x" * 300 + ".pth"))


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": [1]}}']
    + [json.dumps({"weight_map": {"a": name}}) for name in ("", ".", "..", "../a.safetensors", "c:a.safetensors", "x.pth")],
)
def test_an_index_that_is_not_one_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    for load in (load_model, load_shared):
        with pytest.raises(SAMError, match="model.safetensors.index.json was not loaded"):
            load(tmp_path)
