# SPDX-License-Identifier: Apache-2.0
"""Images and labels: where they come from, how many are kept, how wrong they are."""
