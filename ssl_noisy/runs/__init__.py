# SPDX-License-Identifier: Apache-2.0
"""A run in its folder: from flags to `result.json`, resumable."""
