# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
from absl.testing import absltest

from ssl_noisy.data import rows


class RowsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.array = np.arange(24, dtype="uint8").reshape(6, 2, 2)
        path = os.path.join(self.create_tempdir().full_path, "a.npy")
        np.save(path, self.array)
        self.mapped = np.load(path, mmap_mode="r")

    def test_they_are_the_rows(self):
        taken, expected = rows.Rows(self.array, [4, 0, 3]), self.array[[4, 0, 3]]
        self.assertEqual(
            (taken.shape, taken.dtype, taken.ndim, len(taken)), ((3, 2, 2), "u1", 3, 3)
        )
        np.testing.assert_array_equal(taken, expected)
        for key in (1, slice(1, None), np.array([2, 2, 0]), (slice(None), 1, 0), (0, ..., 1)):
            np.testing.assert_array_equal(taken[key], expected[key])

    def test_rows_of_a_mapped_array_are_not_read(self):
        taken = rows.take(rows.take(self.mapped, np.array([5, 4, 1])), np.array([0, 2]))
        self.assertIsInstance(taken, rows.Rows)
        np.testing.assert_array_equal(taken, self.array[[5, 1]])
        self.assertIsInstance(rows.take(self.array, np.array([1])), np.ndarray)


if __name__ == "__main__":
    absltest.main()
