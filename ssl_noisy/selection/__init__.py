# SPDX-License-Identifier: Apache-2.0
"""Which images are worth a label: rules that choose them by their features, without labels."""
