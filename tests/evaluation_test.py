# SPDX-License-Identifier: Apache-2.0
from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest

import ssl_noisy
from ssl_noisy.runs import evaluation


def rows(accuracies, validation=None):
    found = [{"test_accuracy": value} for value in accuracies]
    for row, value in zip(found, validation or []):
        row["validation_accuracy"] = value
    return found


class SummarizeTest(absltest.TestCase):
    def test_each_protocol_on_one_history(self):
        # 25 evaluations: 0.99 early, which only the oracle finds, and at last 20 that rise to 0.69.
        history = rows([0.1, 0.99, 0.1, 0.1, 0.1] + [0.5 + 0.01 * i for i in range(20)])
        summary = evaluation.summarize(history)
        self.assertAlmostEqual(summary["last"], 0.69)
        self.assertAlmostEqual(summary["median_of_last_20"], 0.595)
        self.assertAlmostEqual(summary["best_on_test_oracle"], 0.99)
        self.assertIsNone(summary["validation_choice"])

    def test_validation_chooses_without_the_test_set(self):
        history = rows([0.6, 0.7, 0.9, 0.5], validation=[0.2, 0.8, 0.3, 0.8])
        # The first best validation accuracy is the second row's.
        self.assertEqual(evaluation.summarize(history)["validation_choice"], 0.7)

    def test_a_short_history(self):
        summary = evaluation.summarize(rows([0.25] * 19))
        self.assertIsNone(summary["median_of_last_20"])
        self.assertEqual(summary["last"], 0.25)


class EvaluateTest(absltest.TestCase):
    def test_it_evaluates_the_averaged_weights(self):
        inputs = keras.Input((2, 2, 1))
        network = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
        learner = ssl_noisy.Supervised(network)
        kernel, bias = network.trainable_variables
        live = np.array([0.0, 0.0, 9.0], "float32")
        bias.assign(live)
        kernel.assign(np.zeros(kernel.shape))
        for average in learner.averages:
            average.assign(np.zeros(average.shape))
        learner.averages[1].assign([0.0, 9.0, 0.0])  # the average always predicts 1, the weights 2
        images = np.zeros((4, 2, 2, 1), "uint8")
        accuracy, recall = evaluation.evaluate(learner, images, np.array([1, 1, 1, 0]), 3)
        self.assertEqual(accuracy, 0.75)
        np.testing.assert_array_equal(recall, [0.0, 1.0, np.nan])
        np.testing.assert_array_equal(bias, live)

    def test_all_batches_have_one_size_that_does_not_affect_the_result(self):
        inputs = keras.Input((1, 1, 1))
        network = keras.Model(inputs, toy.LookUp(4, 3)(inputs))
        network.set_weights([np.eye(4, 3, dtype="float32")])  # image i is class i, and 3 is class 0
        learner = ssl_noisy.Supervised(network, ema_momentum=0.0)
        images = np.arange(4, dtype="uint8").reshape(-1, 1, 1, 1)
        labels, sizes, predict = np.array([0, 1, 1, 1]), [], network.predict_on_batch

        def recorded(images):
            sizes.append(len(images))
            return predict(images)

        with mock.patch.object(network, "predict_on_batch", recorded):
            for batch_size in (1, 2, 3, 4, 7):
                accuracy, recall = evaluation.evaluate(learner, images, labels, batch_size)
                self.assertEqual(accuracy, 0.5, batch_size)
                np.testing.assert_allclose(recall, [1.0, 1 / 3, np.nan])
        self.assertEqual(sizes, [1, 1, 1, 1, 2, 2, 3, 3, 4, 7])


if __name__ == "__main__":
    absltest.main()
