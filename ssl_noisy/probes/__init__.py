# SPDX-License-Identifier: Apache-2.0
"""What frozen features of images say about classes and labels: arrays in, arrays out."""
