# SPDX-License-Identifier: Apache-2.0
"""Engines inside other frameworks. Each module needs its framework, and nothing here is imported by the rest."""
