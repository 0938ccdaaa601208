# SPDX-License-Identifier: Apache-2.0
"""The work of a step, counted, beside what a hand counts."""

from unittest import mock

import keras
import numpy as np
from absl.testing import absltest

from ssl_noisy import work
from ssl_noisy.data.task import Task
from ssl_noisy.methods.supervised import Supervised

PIXELS, UNITS, CLASSES, BATCH = 64, 256, 10, 32


def learner(num_examples=100):
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(UNITS, use_bias=False),
            keras.layers.Dense(CLASSES, use_bias=False),
        ]
    )
    images = np.zeros((num_examples, 8, 8, 1), "uint8")
    task = Task(images, np.arange(num_examples, dtype="int32") % CLASSES)
    made = Supervised(
        network, task, batch_size=BATCH, weak_augmentation="none", record_examples=False
    )
    made.compile(keras.optimizers.SGD(0.1))
    return made


class WorkTest(absltest.TestCase):
    def test_operations_of_two_dense_layers(self):
        # Two per product and addition. Both layers forward, the kernels' gradients, and the
        # gradient of the hidden layer: the one of the images is not needed.
        first, second = PIXELS * UNITS, UNITS * CLASSES
        products = 2 * BATCH * (2 * first + 3 * second)
        operations, moved = work.of_step(learner())
        # The rest is a pass over weights and logits: decay, moving average, update.
        self.assertBetween(operations, products, products + 40 * (first + second))
        # The kernels are read forward and backward, and written.
        self.assertBetween(moved, 3 * 4 * (first + second), 200 * 4 * (first + second))

    def test_twice_the_images_are_twice_the_products(self):
        small, large = learner(), learner()
        large.batch_size = 2 * BATCH
        large.enter(large.stages()[0])
        difference = work.of_step(large)[0] - work.of_step(small)[0]
        expected = 2 * BATCH * (2 * PIXELS * UNITS + 3 * UNITS * CLASSES)
        self.assertBetween(difference / expected, 1, 1.1)

    def test_a_batch_reads_its_own_images_alone(self):
        # Of 64 bytes each. All 20,000 have 1.3 MB.
        more = work.of_step(learner(20_000))[1] - work.of_step(learner(100))[1]
        self.assertBetween(more, 0, 1000)

    def test_counting_changes_nothing(self):
        made = learner()
        before = [variable.numpy().copy() for variable in made.variables]
        work.of_step(made)
        for variable, value in zip(made.variables, before):
            np.testing.assert_array_equal(variable.numpy(), value)
        made.fit(made.batches(), steps_per_epoch=2, verbose=0, shuffle=False)

    def test_ceilings_are_the_fastest_of_three(self):
        # A product takes 0.5 s at best, and a copy 0.25 s; the first call of each compiles.
        clock = np.cumsum([0, 9, 0, 0.5, 0, 3, 0, 2, 0, 9, 0, 1, 0, 0.25, 0, 2])
        with (
            mock.patch.object(work, "SIDE", 10),
            mock.patch.object(work, "COPIED", 1000),
            mock.patch.object(work.time, "perf_counter", side_effect=clock),
        ):
            self.assertEqual(work.ceilings("float32"), (2 * 1000 / 0.5, 8 * 1000 / 0.25))

    def test_shares_by_hand(self):
        with (
            mock.patch.object(work, "of_step", return_value=(6e9, 4e9)),
            mock.patch.object(work, "ceilings", return_value=(1e10, 5e9)),
        ):
            found = work.shares(mock.Mock(), 2.0)
        self.assertEqual(found["share_of_matrix_ceiling"], 0.3)
        self.assertEqual(found["share_of_copy_ceiling"], 0.4)


if __name__ == "__main__":
    absltest.main()
