# SPDX-License-Identifier: Apache-2.0
"""Typed access to the scalar metadata of a GGUF file; every error names the key, what was found and expected."""

from paged.loading.errors import CheckpointError
from paged.loading.gguf_file import GgufFile
from paged.loading.gguf_metadata import Value


class Values:
    """The metadata of `file` as seen by its architecture: `integer("block_count")` reads `llama.block_count`."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.architecture = architecture
        self._file = file

    def integer(self, key: str, default: int | None = None) -> int:
        """At least 1."""
        value = self._scalar(key, default)
        if type(value) is not int or value < 1:
            raise self._error(key, "a positive integer", value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.optional_real(key)
        if value is None:
            value = default
        if value is None:
            raise self._error(key, "a number", value)
        return value

    def optional_real(self, key: str) -> float | None:
        """Rounded to six digits: the file keeps float32. Zero means absent, as in llama.cpp."""
        value = self._scalar(key, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise self._error(key, "a number that is not negative", value)
        return float(f"{value:.6g}") or None

    def text(self, key: str) -> str | None:
        value = self._scalar(key, None)
        if value is not None and not isinstance(value, str):
            raise self._error(key, "a string", value)
        return value

    def token_id(self, name: str) -> int | None:
        """`tokenizer.ggml.<name>_token_id`, None if absent."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._file.metadata.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise CheckpointError(f"{self._file.path}: {key}: expected a token id, found {value!r}")
        return value

    def _scalar(self, key: str, default: int | None) -> Value | None:
        return self._file.metadata.get(f"{self.architecture}.{key}", default)

    def _error(self, key: str, expected: str, found: object) -> CheckpointError:
        return CheckpointError(f"{self._file.path}: {self.architecture}.{key}: expected {expected}, found {found!r}")
