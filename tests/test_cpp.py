# SPDX-License-Identifier: Apache-2.0
"""The C++ tests under sanitizers."""

from __future__ import annotations

from cpp_builds import build_and_run


def test_cpp_under_address_and_undefined_sanitizers() -> None:
    options = ["-DPAGED_GPU=none", "-DPAGED_SANITIZE=address,undefined"]
    build_and_run("test-cpp-address-undefined", options, "paged_tests", "cpp")


def test_cpp_threads_under_thread_sanitizer() -> None:
    options = ["-DPAGED_GPU=none", "-DPAGED_SANITIZE=thread"]
    build_and_run("test-cpp-thread", options, "paged_thread_tests", "threads")
