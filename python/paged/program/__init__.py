# SPDX-License-Identifier: Apache-2.0
"""The program of a model: recorded once by `builder`, fused by `passes`, placed by `plan`, printed by `listing`."""
