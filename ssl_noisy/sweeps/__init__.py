# SPDX-License-Identifier: Apache-2.0
"""Sweeps: many runs in one folder, their table and their summary over seeds."""
