# SPDX-License-Identifier: Apache-2.0
"""What a training reveals about each label."""
