# SPDX-License-Identifier: Apache-2.0
"""Complete entries to the CIFAR-N challenge: data, clock, results and texts."""
