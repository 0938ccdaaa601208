# SPDX-License-Identifier: Apache-2.0
"""Runs: from settings to a result in a folder, resumable at any moment."""
