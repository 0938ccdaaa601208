# SPDX-License-Identifier: Apache-2.0
"""The linear separation of two groups, in the compiled step and with scikit-learn."""

import numpy as np
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy.labels import separation
from ssl_noisy.probes import linear_separation


def groups(seed=0, size=400, num_features=12, distance=4.0):
    """Returns features of length 1 of two separable groups, and who belongs to the second."""
    rng = np.random.default_rng(seed)
    is_second = rng.random(size) < 0.3
    directions = rng.normal(size=(2, num_features))
    features = distance * directions[is_second.astype(int)] + rng.normal(size=(size, num_features))
    features[:, 0] = 0.5  # says nothing, and has no variance
    return features / np.linalg.norm(features, axis=1, keepdims=True), is_second


def compiled(features, is_second, known=None):
    known = np.ones(len(features), bool) if known is None else known
    tensors = [ops.convert_to_tensor(one) for one in (features.astype("f4"), is_second, known)]
    return np.array(separation.probabilities(*tensors))


WAYS = (("compiled", compiled), ("scikit_learn", linear_separation.separate))


class SeparationTest(parameterized.TestCase):
    @parameterized.named_parameters(*WAYS)
    def test_it_irons_out_errors_of_the_division(self, separate):
        features, is_second = groups()
        divided = is_second ^ (np.random.default_rng(1).random(400) < 0.15)
        self.assertBetween(np.mean(divided == is_second), 0.8, 0.9)
        found = separate(features, divided) > 0.5
        self.assertGreater(np.mean(found == is_second), 0.98)

    @parameterized.named_parameters(*WAYS)
    def test_a_balance_by_hand(self, separate):
        # One feature that says nothing: both groups weigh the same, although they differ in size.
        features = np.array([[1.0, 0.0], [0.0, 1.0]] * 6)
        is_second = np.repeat([False, False, False, False, True, True], 2)
        np.testing.assert_allclose(separate(features, is_second), 0.5, atol=1e-5)
        # 3 of 4 examples of one feature are in the second group, 1 of 4 of the other: log odds of
        # log 3 and -log 3.
        features = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
        is_second = np.array([1, 1, 1, 0, 1, 0, 0, 0], bool)
        np.testing.assert_allclose(
            separate(features, is_second), [0.75] * 4 + [0.25] * 4, atol=2e-3
        )

    def test_both_ways_agree(self):
        for distance, errors in ((4.0, 0.0), (4.0, 0.1), (0.5, 0.2)):
            features, is_second = groups(distance=distance)
            divided = is_second ^ (np.random.default_rng(1).random(400) < errors)
            pair = [separate(features, divided) for _, separate in WAYS]
            self.assertLess(np.abs(pair[0] - pair[1]).max(), 0.03)
            self.assertGreater(np.mean((pair[0] > 0.5) == (pair[1] > 0.5)), 0.99)

    def test_unknown_examples_are_not_fitted_but_divided(self):
        features, is_second = groups()
        known = np.arange(400) < 300
        divided = np.where(known, is_second, ~is_second)
        found = compiled(features, divided, known) > 0.5
        np.testing.assert_array_equal(found, is_second)

    def test_an_empty_group(self):
        features, is_second = groups(size=20)
        for value in (False, True):
            divided = np.full(20, value)
            np.testing.assert_array_equal(compiled(features, divided), np.full(20, float(value)))
            score, flagged = linear_separation.by_line(features, divided)
            self.assertTrue(np.isnan(score).all())
            self.assertFalse(flagged.any())


if __name__ == "__main__":
    absltest.main()
