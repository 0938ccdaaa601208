# SPDX-License-Identifier: Apache-2.0
"""MixMatch's guessed labels, terms and mixtures, by hand."""

from unittest import mock

import numpy as np
import toy
from absl.testing import absltest

from ssl_noisy import augment

# Two views of one image, and a labeled one.
PROBS = [[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]


def make(**kwargs):
    """Returns a learner whose first view of an unlabeled image is it, the second the next one."""
    learner = toy.make("mixmatch", PROBS, [-1, -1, 0], **{"mixup_alpha": 0.0, **kwargs})
    second = iter([0.0, 1.0])

    def weak_view(images, indices, stream):
        return images if stream == "labeled" else images + next(second)

    learner.weak_view = weak_view
    return learner


class TermsTest(absltest.TestCase):
    def test_guessed_label_by_hand(self):
        for temperature, expected in (
            # Mean 0.6, sharpened. Each view sharpened before the mean gives 0.6244, the mean of
            # logits 0.7273.
            (0.5, 0.692308),
            (1.0, 0.6),
        ):
            with mock.patch.object(augment, "mixup", wraps=augment.mixup) as mixup:
                toy.objective(make(temperature=temperature), labeled=[2], unlabeled=[0])
            images, soft_labels = mixup.call_args.args[:2]
            guessed = [expected, 1 - expected]
            np.testing.assert_allclose(soft_labels, [[1, 0], guessed, guessed], atol=1e-6)
            np.testing.assert_array_equal(np.ravel(images), [2, 0, 1])

    def test_terms_by_hand(self):
        learner = make(steps=100, ramp_end=0.5)
        learner.step.assign(25)
        outcome = toy.objective(learner, labeled=[2], unlabeled=[0])
        self.assertAlmostEqual(outcome["supervised_loss"], 1.203973, places=5)  # -ln 0.3
        # (0.8 - 0.692308)^2 and (0.4 - 0.692308)^2, both twice, over 2 views and 2 classes, times
        # 100, half way up the ramp. The sum over classes would be 4.8521, over views too 9.7041.
        self.assertAlmostEqual(outcome["unsupervised_loss"], 2.426036, places=4)

    def test_the_weight_rises_from_zero_to_the_end_of_the_ramp(self):
        # 4.852071 is the whole.
        for step, expected in ((0, 0.0), (8, 2.426036), (16, 4.852071), (900, 4.852071)):
            learner = make(steps=1024)  # to 1/64
            learner.step.assign(step)
            outcome = toy.objective(learner, labeled=[2], unlabeled=[0])
            self.assertAlmostEqual(outcome["unsupervised_loss"], expected, places=4)

    def test_no_gradient_flows_through_the_guess(self):
        learner = toy.make("mixmatch", PROBS, [-1, -1, 0], ramp_end=0.0)
        as_last = lambda images, soft_labels, *_, **__: (0 * images + 2, soft_labels)  # noqa: E731
        with mock.patch.object(augment, "mixup", as_last):
            gradient = toy.table_gradient(learner)
        np.testing.assert_array_equal(gradient[:2], 0)
        self.assertGreater(np.abs(gradient[2]).max(), 0.1)

    def test_guesses_leave_the_running_statistics_alone(self):
        images = toy.digits()[0][:16].astype("float32")
        mixup = lambda _, soft_labels, *__, **___: (images, soft_labels)  # noqa: E731
        statistics = []
        for view in (lambda images: images, lambda images: 255 - images):
            learner, _ = toy.learner("mixmatch", compiled=False)
            learner.weak_view = lambda images, indices, stream: view(images)  # noqa: B023
            before = [v.numpy() for v in learner.running_statistics]
            with mock.patch.object(augment, "mixup", mixup):
                toy.objective(learner, labeled=range(4), unlabeled=range(20, 26))
            statistics.append([v.numpy() for v in learner.running_statistics])
            self.assertTrue(all((a != b).any() for a, b in zip(before, statistics[-1])))
        for first, second in zip(*statistics):
            np.testing.assert_array_equal(first, second)


class MixturesTest(absltest.TestCase):
    def mixtures(self, **kwargs):
        """Returns mixtures of 30 labeled images 0 of class 0 and 60 unlabeled 1 of class 1."""
        probs = [[1 - 1e-6, 1e-6], [1e-6, 1 - 1e-6]]
        learner = toy.make("mixmatch", probs, [0, -1], **kwargs)
        mixed = []

        def mixup(*args, mixup=augment.mixup, **kwargs):
            mixed.extend(np.array(value) for value in mixup(*args, **kwargs))
            return mixed

        with mock.patch.object(augment, "mixup", mixup):
            toy.objective(learner, labeled=[0] * 30, unlabeled=[1] * 30)
        return np.ravel(mixed[0]), mixed[1]

    def test_everything_is_mixed_with_everything_and_the_own_image_prevails(self):
        images, soft_labels = self.mixtures()
        np.testing.assert_allclose(images, soft_labels[:, 1], atol=1e-5)
        # Without max(lambda, 1 - lambda) half of the shares would be below.
        self.assertGreaterEqual(soft_labels[:30, 0].min(), 0.5)
        self.assertGreaterEqual(soft_labels[30:, 1].min(), 0.5)
        mixed = [own[own < 1 - 1e-5] for own in (soft_labels[:30, 0], soft_labels[30:, 1])]
        # 2 in 3 labeled images meet an unlabeled one, and 1 in 3 the other way.
        self.assertBetween(len(mixed[0]), 10, 28)
        self.assertBetween(len(mixed[1]), 6, 35)
        self.assertGreater(len(np.unique(np.concatenate(mixed).round(4))), 15)

    def test_one_share_for_the_batch_where_told_so(self):
        _, soft_labels = self.mixtures(mixup_per_image=False)
        own = np.concatenate([soft_labels[:30, 0], soft_labels[30:, 1]])
        mixed = own[own < 1 - 1e-5]
        self.assertNotEmpty(mixed)
        np.testing.assert_allclose(mixed, mixed[0], atol=1e-5)

    def test_defaults_are_the_authors(self):
        learner, _ = toy.learner("mixmatch", compiled=False, unlabeled_ratio=1)
        with mock.patch.object(augment, "mixup", wraps=augment.mixup) as mixup:
            toy.objective(learner, labeled=range(4), unlabeled=range(20, 24))
        expected = {"alpha": 0.5, "per_image": True, "keep_larger": True}
        self.assertEqual(mixup.call_args.kwargs, expected)
        made = type(learner)(learner.network)
        self.assertEqual((made.unsupervised_weight, made.temperature), (100.0, 0.5))
        self.assertEqual((made.unlabeled_ratio, made.ramp_end, made.steps), (1, 1 / 64, 2**20))


if __name__ == "__main__":
    absltest.main()
