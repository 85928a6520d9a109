# SPDX-License-Identifier: Apache-2.0
"""Writes a GGUF model again with all its matrices in one other number type, for comparing engines at one precision.

The values are the source's, so a BF16 file made from a Q4_1 one is no better a model; it is as many bytes to read.
Needs the `gguf` package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_REWRITTEN_FIELDS = ("general.architecture", "general.file_type")


def convert(source: Path, target: Path, type_name: str) -> None:
    """Copies the metadata and the vectors of `source` as they are, and its matrices as `type_name`."""
    reader = gguf.GGUFReader(source)
    quantization = gguf.GGMLQuantizationType[type_name]
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    writer.add_file_type(_FILE_TYPES[type_name])
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in _REWRITTEN_FIELDS:
            continue
        element = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, gguf.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", choices=sorted(_FILE_TYPES), required=True)
    arguments = parser.parse_args()
    convert(arguments.source, arguments.target, arguments.type)


if __name__ == "__main__":
    main()
