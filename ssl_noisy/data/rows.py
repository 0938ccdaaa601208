# SPDX-License-Identifier: Apache-2.0
"""Some rows of an array that need not fit into memory."""

import numpy as np


class Rows:
    """Rows of an array, read when they are asked for: `rows[i]` is `array[positions[i]]`.

    It has the shape and type of the array `array[positions]`, which would be a copy, and NumPy
    converts it to one.

    Args:
        array: Array, which may be memory-mapped, or `Rows`.
        positions: Integer array `(num_rows,)`.
    """

    def __init__(self, array, positions):
        self.array = array
        self.positions = np.asarray(positions)
        self.dtype = array.dtype
        self.shape = (len(self.positions), *array.shape[1:])
        self.ndim = len(self.shape)

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, key):
        first, *others = key if isinstance(key, tuple) else (key,)
        return self.array[(self.positions[first], *others)]

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype=dtype)


def take(array, positions):
    """Returns `array[positions]`: `Rows` of a memory-mapped array, else a copy."""
    if isinstance(array, (np.memmap, Rows)):
        return Rows(array, positions)
    return array[positions]
