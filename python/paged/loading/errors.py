# SPDX-License-Identifier: Apache-2.0
"""The one exception of everything that reads a model's files."""


class CheckpointError(ValueError):
    """A model file is broken, hostile or not supported; the text says what was found and what was expected."""
