# SPDX-License-Identifier: Apache-2.0
"""The rope_parameters of a model, out of GGUF metadata and the tensor rope_freqs.weight.

Llama 3's frequency scaling is not in the metadata: llama.cpp stores the factor of each frequency as a tensor. The
published models share all constants but the overall factor, so it is found from the tensor and then proved: the
factors it implies must be those stored.
"""

from math import pi
from typing import Any

import numpy as np
import numpy.typing as npt

from paged.loading.dequantize import dequantize
from paged.loading.errors import CheckpointError
from paged.loading.gguf_file import GgufFile
from paged.loading.gguf_values import Values

FREQUENCIES = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_parameters(file: GgufFile, values: Values, default_theta: float, head_dim: int) -> dict[str, Any]:
    """As in config.json: rope_theta, rope_type, and what that type needs. Raises CheckpointError if not supported."""
    theta = values.real("rope.freq_base", default_theta)
    kind = values.text("rope.scaling.type") or "none"
    if FREQUENCIES in file.tensors:
        return {"rope_theta": theta} | _llama3(file, theta, head_dim // 2)
    if kind == "none":
        return {"rope_theta": theta, "rope_type": "default"}
    if kind == "linear":
        return {"rope_theta": theta, "rope_type": "linear", "factor": values.real("rope.scaling.factor")}
    if kind == "yarn":
        original = values.integer("rope.scaling.original_context_length")
        scaling = {"rope_type": "yarn", "factor": values.real("rope.scaling.factor")}
        return {"rope_theta": theta, **scaling, "original_max_position_embeddings": original}
    raise CheckpointError(f"{file.path}: rope.scaling.type: expected none, linear or yarn, found '{kind}'")


def llama3_factors(theta: float, factor: float, num_pairs: int) -> npt.NDArray[np.float32]:
    """float32 [num_pairs]: what each rope frequency is divided by (Llama 3.1; transformers, rope_type "llama3")."""
    wavelength = 2 * pi * theta ** (np.arange(num_pairs, dtype=np.float64) / num_pairs)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    smooth = (_LLAMA3["original_max_position_embeddings"] / wavelength - low) / (high - low)
    return (1 / np.clip((1 - smooth) / factor + smooth, 1 / factor, 1)).astype(np.float32)


def _llama3(file: GgufFile, theta: float, num_pairs: int) -> dict[str, Any]:
    tensor = file.tensors[FREQUENCIES]
    if tensor.shape != (num_pairs,):
        raise CheckpointError(f"{file.path}: {FREQUENCIES}: expected {num_pairs} factors, found shape {tensor.shape}")
    stored = dequantize(file.view(tensor), tensor.type, tensor.shape)
    factor = float(f"{stored.max():.6g}")
    if not factor >= 1 or not np.allclose(stored, llama3_factors(theta, factor, num_pairs), rtol=1e-4, atol=0):
        raise CheckpointError(f"{file.path}: {FREQUENCIES}: expected the factors of Llama 3.1, found {stored.tolist()}")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
