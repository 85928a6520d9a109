# SPDX-License-Identifier: Apache-2.0
"""The GGUF reader against the gguf package, and against files that are cut, flipped or lie."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from loading_files import VOCABULARY, finish, llama_tensors, write_llama_gguf
from paged.loading import CheckpointError, open_checkpoint
from paged.loading.gguf_file import GgufFile
from paged.loading.gguf_metadata import GgufArray


def test_metadata_of_every_type_comes_back(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    numbers = {"uint8": 200, "int8": -5, "uint16": 60000, "int16": -300, "uint32": 1 << 31, "int32": -(1 << 31)}
    numbers |= {"uint64": 1 << 63, "int64": -(1 << 63)}
    for name, value in numbers.items():
        getattr(writer, f"add_{name}")(name, value)
    writer.add_float32("float32", 0.1)
    writer.add_float64("float64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("string", "ü🎉")
    writer.add_array("strings", ["a", "日本", " "])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("floats", [0.5, -1.0])
    writer.add_tensor("t", np.zeros((2, 3), np.float32))
    finish(writer)
    metadata = GgufFile(tmp_path / "m.gguf").metadata
    assert {name: metadata[name] for name in numbers} == numbers
    assert metadata["float32"] == np.float32(0.1) and metadata["float64"] == 0.1
    assert metadata["bool"] is True and metadata["string"] == "ü🎉"
    strings, integers, floats = metadata["strings"], metadata["integers"], metadata["floats"]
    assert isinstance(strings, GgufArray) and isinstance(integers, GgufArray) and isinstance(floats, GgufArray)
    assert strings.strings() == ["a", "日本", " "] and strings.string(1) == "日本"
    assert integers.numbers().tolist() == [1, -2, 3] and floats.numbers().tolist() == [0.5, -1.0]
    with pytest.raises(CheckpointError, match="array of strings"):
        integers.strings()
    with pytest.raises(CheckpointError, match="array of numbers"):
        strings.numbers()


@pytest.mark.parametrize("type", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_tensors_of_every_type_have_the_bytes_of_the_gguf_package(tmp_path: Path, type: str) -> None:
    kind = gguf.GGMLQuantizationType[type]
    data = np.random.default_rng(0).integers(0, 120, gguf.quant_shape_to_byte_shape((3, 512), kind), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", data, raw_shape=data.shape, raw_dtype=kind)
    finish(writer)
    file = GgufFile(tmp_path / "m.gguf")
    names = {"F16": "float16", "BF16": "bfloat16"}
    assert file.tensors["t"].type == names.get(type, type.lower()) and file.tensors["t"].shape == (3, 512)
    np.testing.assert_array_equal(file.view(file.tensors["t"]), data.ravel())


def test_real_files_read_as_the_gguf_package_reads_them(real_models: dict[str, Path]) -> None:
    path = real_models["smollm2-135m-instruct.gguf"]
    oracle, file = gguf.GGUFReader(path), GgufFile(path)
    assert {tensor.name for tensor in oracle.tensors} == set(file.tensors)
    for tensor in oracle.tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(tensor.shape.tolist()[::-1]) and ours.offset == tensor.data_offset
        assert ours.num_bytes == tensor.n_bytes
    for key, field in oracle.fields.items():
        if key.startswith("GGUF."):
            continue
        value = file.metadata[key]
        if isinstance(value, GgufArray):
            value = value.strings() if value.type == 8 else value.numbers().tolist()
        assert value == field.contents()


def test_opening_reads_no_weights(real_models: dict[str, Path]) -> None:
    path = real_models["smollm2-135m-instruct.gguf"]
    with open_checkpoint(path) as checkpoint:
        raw = checkpoint.tensor("model.layers.29.mlp.down_proj.weight")
        resident, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0] and not line.split()[0].endswith(":"):
                inside = line.endswith(str(path.resolve()))
            elif inside and line.startswith("Rss:"):
                resident += int(line.split()[1]) << 10
        assert 0 < resident < 4 << 20 < path.stat().st_size
        assert raw.data.size == 576 * 1536 // 32 * 20


def test_a_cut_file_is_refused_at_every_length(tmp_path: Path) -> None:
    data = write_llama_gguf(tmp_path / "m.gguf", **{"tokenizer.ggml.tokens": VOCABULARY}).read_bytes()
    head = GgufFile(tmp_path / "m.gguf").tensors["token_embd.weight"].offset
    path = tmp_path / "cut.gguf"
    for length in [*range(head + 64), *range(head, len(data), 509)]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_flipped_bits_in_the_head_never_crash_or_hang(tmp_path: Path) -> None:
    data = write_llama_gguf(tmp_path / "m.gguf", **{"tokenizer.ggml.tokens": VOCABULARY}).read_bytes()
    head = GgufFile(tmp_path / "m.gguf").tensors["token_embd.weight"].offset
    path = tmp_path / "flipped.gguf"
    rng, refused = random.Random(0), 0
    for position in range(head):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            with open_checkpoint(path) as checkpoint:
                for name in checkpoint.names():
                    checkpoint.dense(name)
        except CheckpointError:
            refused += 1
    assert refused > head // 4


def _head(*parts: bytes, tensors: int = 0, pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + b"".join(parts)


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _tensor(name: bytes, dimensions: list[int], type: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return _string(name) + shape + struct.pack("<IQ", type, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "memory-mapped"),
        (b"GGML" + bytes(60), "not a GGUF file"),
        (_head(version=1), "version 2 or 3, found 1"),
        (_head(version=3 << 24), "big-endian"),
        (_head(tensors=1 << 60), "tensors need at least"),
        (_head(pairs=1 << 60), "pairs need at least"),
        (_head(_string(b"k") + struct.pack("<I", 99), pairs=1), "unknown metadata type 99"),
        (_head(_string(b"k") + struct.pack("<IIQ", 9, 9, 1), bytes(40), pairs=1), "element type 9"),
        (_head(_string(b"k") + struct.pack("<IIQ", 9, 8, 1 << 61), bytes(40), pairs=1), "strings need at least"),
        (_head(_string(b"k") + struct.pack("<IIQQ", 9, 8, 1, 1 << 63), bytes(40), pairs=1), "goes beyond the end"),
        (_head(_string(b"k") + struct.pack("<IIQ", 9, 5, 1 << 62), bytes(40), pairs=1), "elements need at least"),
        (_head(struct.pack("<Q", 1 << 40), bytes(40), pairs=1), "name of at most"),
        (_head(_string(b"\xff") + bytes(40), pairs=1), "not UTF-8"),
        (_head(*[_string(b"k") + struct.pack("<IB", 0, 1)] * 2, pairs=2), "'k' appears twice"),
        (_head(_tensor(b"t", []), bytes(99), tensors=1), "dimensions, found 0"),
        (_head(_tensor(b"t", [1] * 5), bytes(99), tensors=1), "dimensions, found 5"),
        (_head(_tensor(b"t", [0, 4]), bytes(99), tensors=1), "impossible shape"),
        (_head(_tensor(b"t", [31, 4], 2), bytes(99), tensors=1), "impossible shape"),
        (_head(_tensor(b"t", [256], 11), bytes(999), tensors=1), r"found 11 \(q3_k\)"),
        (_head(_tensor(b"t", [256], 77), bytes(999), tensors=1), r"found 77 \(unknown\)"),
        (_head(_tensor(b"t", [1 << 62, 1 << 62]), bytes(99), tensors=1), "lie within the file"),
        (_head(_tensor(b"t", [8], 0, 1), bytes(99), tensors=1), "aligned to 32"),
        (_head(_tensor(b"t", [8]), _tensor(b"u", [8]), bytes(999), tensors=2), "follow byte"),
        (_head(_tensor(b"t", [8]), _tensor(b"t", [8], 0, 32), bytes(999), tensors=2), "'t' appears twice"),
        (_head(_string(b"general.alignment") + struct.pack("<II", 4, 3), bytes(99), pairs=1), "power of two"),
    ],
)
def test_files_that_lie_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        GgufFile(path)


def test_one_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        GgufFile(write_llama_gguf(tmp_path / "m.gguf", **{"split.count": 3}))


def test_the_writer_used_here_makes_whole_files(tmp_path: Path) -> None:
    with open_checkpoint(write_llama_gguf(tmp_path / "m.gguf")) as checkpoint:
        assert len(checkpoint.names()) == len(llama_tensors())
