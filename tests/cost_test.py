# SPDX-License-Identifier: Apache-2.0
from unittest import mock

import keras
import toy
from absl.testing import absltest, parameterized

from ssl_noisy import machine, methods
from ssl_noisy.runs import cost


class MemoryTest(absltest.TestCase):
    def test_the_outputs_of_all_layers_for_the_images_of_a_step(self):
        learner, _ = toy.learner("fixmatch", batch_size=100, unlabeled_ratio=9, compiled=False)
        # Input and rescaled pixels 8 x 8, 3 layers of 3 x 3 x 8, these once more, 10 logits.
        needed = 1000 * 4 * (2 * 64 + 4 * 72 + 10)
        with mock.patch.object(machine, "memory", lambda: needed):
            cost.check_memory(learner)
        with mock.patch.object(machine, "memory", lambda: needed - 1):
            with self.assertRaisesRegex(
                ValueError,
                "A step of 1,000 images .*Received: --batch_size=100 --unlabeled_ratio=9. Lower",
            ):
                cost.check_memory(learner)

    def test_the_memory_of_this_machine(self):
        self.assertBetween(machine.memory(), 2**28, 2**50)


class ImagesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("supervised", {}, 8),
        ("fixmatch", {"unlabeled_ratio": 3}, 8 + 24),
        ("mixmatch", {"unlabeled_ratio": 3}, 8 + 2 * 24),
        # Mixed: labeled, weak and 5 strong views. Not mixed: a strong view, and its rotation.
        ("remixmatch", {"unlabeled_ratio": 3, "num_strong_views": 5}, 8 + 6 * 24 + 2 * 24),
        ("arazo", {"unlabeled_batch_size": 20}, 28),
        ("divide_mix", {}, 4 * 8),
        ("co_teaching", {}, 2 * 8),
        ("promix", {}, 2 * 4 * 8),
        ("pls_lsa", {}, 2 * 8),
        ("pls_lsa", {"two_networks": True}, 4 * 8),
        # Mixed: two strong views of all; not mixed: those of unlabeled images. Two networks.
        ("cross_split", {"unlabeled_batch_size": 3}, 2 * (2 * (8 + 3) + 2 * 3)),
    )
    def test_images_per_step(self, method, arguments, expected):
        learner = methods.get(method)(toy.network(), batch_size=8, **arguments)
        self.assertEqual(learner.images_per_step(), expected)


class DurationTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.learner, _ = toy.learner("fixmatch", compiled=False)  # 12 images a step

    def test_four_forward_passes_of_each_image(self):
        clock = mock.Mock()  # replaces the module, because JAX calls its function too
        clock.monotonic.side_effect = [0.0, 99.0, 100.0, 150.0, 200.0, 205.0]  # the third takes 5 s
        with mock.patch.object(cost, "time", clock):
            seconds = cost.duration(self.learner, 1000, batch_size=50)
        self.assertAlmostEqual(seconds, 4 * (5 / 50) * 12 * 1000)

    def test_batches_that_grow_cost_what_they_have(self):
        learner, _ = toy.learner(
            "fixmatch", batch_size=2, unlabeled_ratio=3, steps=26, curriculum_batch_size=True
        )
        # 17 steps of 2 + 2 images, 6 of 2 + 4, 3 of 2 + 6; the last nine are the last two stages.
        self.assertEqual(learner.images_per_step(), 8)
        for steps, images in ((26, 17 * 4 + 6 * 6 + 3 * 8), (9, 6 * 6 + 3 * 8), (3, 3 * 8)):
            clock = mock.Mock()
            clock.monotonic.side_effect = [0.0, 9.0, 10.0, 15.0, 20.0, 27.0]
            with mock.patch.object(cost, "time", clock):
                seconds = cost.duration(learner, steps, batch_size=50)
            self.assertAlmostEqual(seconds, 4 * (5 / 50) * images)

    def test_the_learner_does_not_change(self):
        before = [v.numpy() for v in self.learner.variables]
        cost.duration(self.learner, 1000)
        for value, variable in zip(before, self.learner.variables):
            keras.tree.map_structure(self.assertEqual, value.tolist(), variable.numpy().tolist())

    def test_a_long_training_names_the_flag_that_shortens_it(self):
        for hours, steps, text in (
            (0.16, 5000, "5,000 steps"),
            (1.9, 5000, "5,000 steps, about 114 minutes on this machine (--steps shortens it)"),
            (2.6, 5000, "5,000 steps, about 3 hours on this machine (--steps shortens it)"),
            (360, 2**20, "1,048,576 steps, about 15 days on this machine (--steps shortens it)"),
        ):
            with mock.patch.object(cost, "duration", lambda *_, h=hours: 3600 * h):
                self.assertEqual(cost.describe(self.learner, steps), text)
        with mock.patch.object(cost, "duration", side_effect=AssertionError):
            # A step has twelve images.
            self.assertEqual(cost.describe(self.learner, 4166), "4,166 steps")
        with mock.patch.object(cost, "duration", lambda *_: 36_000):
            self.assertIn("about 10 hours", cost.describe(self.learner, 4167))


if __name__ == "__main__":
    absltest.main()
