# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import toy
from absl.testing import absltest, parameterized
from matplotlib import image

from ssl_noisy import plots


class PlotsTest(parameterized.TestCase):
    def test_curves_show_what_the_history_has(self):
        path = os.path.join(self.create_tempdir().full_path, "curves.png")
        history = [
            {"step": 10, "test_accuracy": 0.2, "mask_rate": 0.0, "pseudo_label_accuracy": None},
            {"step": 20, "test_accuracy": 0.9, "mask_rate": 0.5, "pseudo_label_accuracy": 0.8},
        ]
        plots.curves(history, path)
        with_masks = image.imread(path)
        plots.curves([{k: row[k] for k in ("step", "test_accuracy")} for row in history], path)
        self.assertGreater(np.abs(with_masks - image.imread(path)).sum(), 0)

    @parameterized.parameters("fixmatch", "supervised")
    def test_views_leave_the_random_state_alone(self, method):
        learner, _ = toy.learner(method, compiled=False)
        before = np.array(learner.seed_generator.state.value)
        path = os.path.join(self.create_tempdir().full_path, "views.png")
        plots.views(learner, path)
        np.testing.assert_array_equal(np.array(learner.seed_generator.state.value), before)
        height, width, _ = image.imread(path).shape
        rows = 3 if method == "fixmatch" else 2
        self.assertAlmostEqual(height / width, rows * 1.2 / 11, places=1)

    def test_views_of_the_derandomised_flip(self):
        learner, _ = toy.learner(
            "supervised", compiled=False, weak_augmentation="alternating_flip_shift"
        )
        path = os.path.join(self.create_tempdir().full_path, "views.png")
        plots.views(learner, path)
        self.assertGreater(image.imread(path).std(), 0.1)


if __name__ == "__main__":
    absltest.main()
