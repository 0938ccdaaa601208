# SPDX-License-Identifier: Apache-2.0
"""Mean Teacher's formula, by hand, on a network that answers with fixed probabilities."""

import itertools

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import MeanTeacher, methods

STUDENT = np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.5, 0.3, 0.2]], "float32")
TEACHER = np.array([[0.6, 0.3, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]], "float32")


def make(teacher=TEACHER, **kwargs):
    learner = toy.make("mean_teacher", STUDENT, [-1, -1, 0], steps=100, **kwargs)
    for average in learner.averages:
        average.assign(np.log(teacher))
    return learner


class MeanTeacherTest(parameterized.TestCase):
    @parameterized.parameters((0, 0.0), (10, 0.25), (40, 1.0), (100, 1.0))
    def test_terms_by_hand(self, step, share):
        learner = make()
        learner.step.assign(step)
        outcome = toy.objective(learner, [2], [0, 1])
        self.assertAlmostEqual(float(outcome["supervised_loss"]), 0.693147, places=5)
        # 50 (.2^2 + .2^2 + 0) / 6: a sum over the classes would be three times as much, the
        # distance of log-probabilities 16 times.
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), share * 0.666667, places=5)

    def test_a_teacher_that_is_the_student_is_exactly_zero(self):
        learner = make(teacher=STUDENT, ramp_end=0.0)
        self.assertEqual(float(toy.objective(learner, [2], [0, 1])["unsupervised_loss"]), 0.0)

    def test_the_teacher_is_the_moving_average(self):
        learner = make(teacher=STUDENT, ramp_end=0.0, ema_momentum=0.75, ema_warmup=False)
        learner.compile(keras.optimizers.SGD(4.0))
        toy.fit(learner, steps=1)
        # Row 2 moved by 4 (one-hot - p) = (2, -1.2, -.8), its average by a quarter.
        table, average = learner.network.get_weights()[0], learner.averages[0].numpy()
        np.testing.assert_allclose(table[2] - np.log(STUDENT[2]), [2, -1.2, -0.8], atol=1e-4)
        np.testing.assert_allclose(average[2] - np.log(STUDENT[2]), [0.5, -0.3, -0.2], atol=1e-4)
        # Probabilities .95349 .02332 .02319 and .68109 .18362 .13529; its start, which is where a
        # teacher that forgets to follow stays, gives 5.22440.
        outcome = toy.objective(learner, [0], [2])
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 1.874355, places=3)

    def test_the_gradient_is_the_students(self):
        gradient = toy.table_gradient(make(unsupervised_weight=1.0, ramp_end=0.0))
        # 2 p ((p - t) - sum of p (p - t)) / 9; nothing where the two agree.
        expected = [[0.010667, -0.007556, -0.003111], [0, 0, 0]]
        np.testing.assert_allclose(gradient[:2], expected, atol=1e-6)

    def test_two_views_of_which_the_teachers_has_no_gradient(self):
        # Without an average the teacher is the network itself; the views are examples 0 and 1.
        learner, rows = make(ema_momentum=0.0, ramp_end=0.0), itertools.cycle([0.0, 1.0])
        learner.weak_view = lambda images, indices, stream="labeled": (
            images if stream == "labeled" else ops.full_like(images, next(rows))
        )
        # 50 (.5^2 + .3^2 + .2^2) / 3; one view for both gives 0.
        outcome = toy.objective(learner, [2], [0, 1])
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 6.333333, places=4)
        moved = (toy.table_gradient(learner) != 0).any(axis=1)
        self.assertEqual(moved[:2].sum(), 1)

    def test_the_teacher_drops_out_other_features_than_the_student(self):
        inputs = keras.Input((1, 1, 1))
        x = keras.layers.Dropout(0.5)(keras.layers.Dense(64)(keras.layers.Flatten()(inputs)))
        network = keras.Model(inputs, keras.layers.Dense(3)(x))
        learner = MeanTeacher(network, make().task, weak_augmentation="none", ramp_end=0.0)
        # The same mask for both, an easy slip, gives exactly zero.
        self.assertGreater(float(toy.objective(learner, [0], [1, 2])["unsupervised_loss"]), 1e-3)

    def test_running_statistics_follow_labeled_views_alone(self):
        before, after = toy.statistics("mean_teacher", gray=0.0)
        self.assertTrue((before != after).all())
        np.testing.assert_allclose(after, toy.statistics("mean_teacher", gray=255.0)[1], rtol=1e-6)

    def test_defaults_are_the_benchmarks(self):
        learner = make()
        self.assertEqual((learner.unsupervised_weight, learner.ramp_end), (50.0, 0.4))
        self.assertEqual((learner.ema_momentum, learner.average_statistics), (0.999, False))
        self.assertEqual(methods.arguments("mean_teacher")["unlabeled_ratio"].default, 1)


if __name__ == "__main__":
    absltest.main()
