# SPDX-License-Identifier: Apache-2.0
"""The record of every example, by hand, and as the compiled step keeps it."""

import keras
import numpy as np
import toy
from absl.testing import absltest
from keras import ops

from ssl_noisy import losses
from ssl_noisy.labels import record

NAN = float("nan")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def take_in(batches, num_examples=3):
    """Returns the record after batches of `(indices, given_labels, logits)`."""
    rows = record.initial(num_examples, np.shape(batches[0][2])[1])
    given = np.full(num_examples, -1)
    for indices, labels, logits in batches:
        rows = record.updated(
            ops.convert_to_tensor(rows),
            np.array(indices, "int32"),
            np.array(labels, "int32"),
            np.array(logits, "float32"),
        )
        given[indices] = labels
    return record.read(ops.convert_to_numpy(rows), given)


class FormulasTest(absltest.TestCase):
    def test_margin_is_of_logits_and_leaves_the_label_out_of_the_maximum(self):
        logits = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.5], [-4.0, -9.0, -6.0]], "float32")
        margins = ops.convert_to_numpy(losses.margin(np.array([0, 1, 2]), logits))
        np.testing.assert_allclose(margins, [1.0, -2.0, -2.0])

    def test_margin_is_finite_in_half_precision(self):
        logits = ops.cast(np.array([[60000.0, -60000.0]]), "float16")
        self.assertEqual(float(losses.margin(np.array([0]), logits)[0]), 120000.0)

    def test_cores_by_hand(self):
        # log p = log(0.7, 0.2, 0.1), their mean -1.423...; of label 1: 1.6094 - 1.4230
        logits = np.log(np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]], "float32")) + 5
        values = ops.convert_to_numpy(losses.cores(np.array([1, 0]), logits))
        mean = -(np.log(0.7) + np.log(0.2) + np.log(0.1)) / 3
        np.testing.assert_allclose(values, [-np.log(0.2) - mean, -np.log(0.7) - mean], rtol=1e-5)
        self.assertAlmostEqual(float(values[0]), 0.186539, places=5)


class RecordTest(absltest.TestCase):
    def test_three_observations_by_hand(self):
        batches = [
            ([0], [1], [[0.0, 5.0]]),  # right, margin 5: the first, not part of the area
            ([0], [1], [[2.0, 1.0]]),  # wrong: forgotten, margin -1
            ([0], [1], [[0.0, 3.0]]),  # right again, margin 3
        ]
        kept = take_in(batches, 2)
        loss = np.log1p(np.exp([-5.0, 1.0, -3.0]))
        for name, value in {
            "observations": 3,
            "aum": (-1 + 3) / 2,
            "margin": 3,
            "loss": loss[2],
            "mean_loss": loss.mean(),
            "label_probability": (sigmoid(5.0) + sigmoid(-1.0) + sigmoid(3.0)) / 3,
            "agreement": 2 / 3,
            "wrong_predictions": 1,
            "cores": np.mean([-2.5, 0.5, -1.5]),
            "prediction": 1,
            "last_correct": 1,
            "forgetting_events": 1,
        }.items():
            self.assertAlmostEqual(float(kept[name][0]), value, places=5, msg=name)
        self.assertEqual(kept["observations"][1], 0)
        for name in record.MEANS:
            self.assertTrue(np.isnan(kept[name][1]), name)
        self.assertEqual(kept["wrong_predictions"][1], 0)
        self.assertEqual((kept["prediction"][1], kept["last_correct"][1]), (-1, -1))

    def test_cores_of_a_confident_network_has_a_floor(self):
        # 40 - 2 * 18.420681 / 3: wrong. The mean logit minus the label's would be 0.
        kept = take_in([([0], [1], [[0.0, 40.0, 80.0]])], 1)
        self.assertAlmostEqual(kept["cores"][0], 27.719546, places=4)

    def test_the_margin_of_the_mean_probabilities_by_hand(self):
        # Label 0 of (0.5, 0.3, 0.2), (0.1, 0.8, 0.1) and (0.3, 0.1, 0.6): the means are 0.3, 0.4
        # and 0.3. The mean of the three margins, 0.2, -0.7 and -0.3, is another number.
        probs = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]]
        kept = take_in([([2], [0], np.log([row])) for row in probs])
        self.assertAlmostEqual(kept["label_probability"][2], 0.3, places=6)
        self.assertAlmostEqual(kept["probability_margin"][2], -0.1, places=6)
        # The last prediction was class 2, that of the mean is class 1.
        self.assertEqual(kept["prediction"].tolist(), [-1, -1, 1])
        self.assertEqual(kept["wrong_predictions"].tolist(), [0, 0, 2])
        # The label with the largest mean has its distance to the second largest.
        kept = take_in([([0], [1], np.log([row])) for row in probs])
        self.assertAlmostEqual(kept["probability_margin"][0], 0.1, places=6)

    def test_mean_probabilities_of_large_logits_are_finite(self):
        kept = take_in([([0], [0], [[-6e4, 6e4]]), ([0], [0], [[6e4, -6e4]])])
        self.assertEqual((kept["label_probability"][0], kept["probability_margin"][0]), (0.5, 0.0))

    def test_an_example_seen_once_has_no_area(self):
        self.assertTrue(np.isnan(take_in([([2], [0], [[1.0, 0.0]])])["aum"][2]))

    def test_to_stay_wrong_is_not_to_forget(self):
        wrong = ([1], [0], [[0.0, 1.0]])
        self.assertEqual(take_in([wrong, wrong, wrong])["forgetting_events"][1], 0)

    def test_unlabeled_examples_are_passed_over(self):
        kept = take_in([([0, 1], [-1, 0], [[1.0, 0.0], [1.0, 0.0]])] * 2)
        self.assertEqual(kept["observations"].tolist(), [0, 2, 0])
        self.assertEqual(kept["prediction"].tolist(), [-1, 0, -1])
        self.assertEqual(np.isnan(kept["label_probability"]).tolist(), [True, False, True])

    def test_an_example_twice_in_a_batch_counts_twice_and_its_last_place_is_remembered(self):
        first = ([0, 1], [0, 0], [[9.0, 0.0], [9.0, 0.0]])
        twice = ([0, 1, 0], [0, 0, 0], [[0.0, 4.0], [3.0, 0.0], [0.0, 2.0]])
        kept = take_in([first, twice])
        self.assertEqual(kept["observations"].tolist(), [3, 2, 0])
        self.assertEqual(kept["aum"][:2].tolist(), [-3.0, 3.0])
        self.assertEqual(kept["margin"][0], -2.0)
        probs = np.mean(sigmoid(np.array([9.0, -4.0, -2.0])))
        self.assertAlmostEqual(kept["label_probability"][0], probs, places=6)
        self.assertEqual(kept["last_correct"].tolist(), [0, 1, -1])
        self.assertEqual(kept["forgetting_events"].tolist(), [1, 0, 0])

    def test_average_takes_each_record_where_it_knows(self):
        one = take_in([([0, 1], [0, 0], [[1.0, 0.0], [4.0, 0.0]])] * 2)
        two = take_in([([0, 1], [0, 0], [[3.0, 0.0], [0.0, 6.0]])] * 3)
        masked = record.masked(one, np.array([True, False, True]))
        mean = record.average([masked, two])
        self.assertEqual(mean["aum"][:2].tolist(), [2.0, -6.0])
        self.assertTrue(np.isnan(mean["aum"][2]))
        self.assertEqual(mean["observations"].tolist(), [5, 3, 0])
        self.assertEqual(mean["prediction"].tolist(), [0, 1, -1])
        self.assertEqual(mean["wrong_predictions"].tolist(), [0, 3, 0])
        self.assertEqual(mean["passes"].tolist(), [2, 1, 0])
        margins = [2 * (sigmoid(1.0) + sigmoid(3.0)) / 2 - 1, 2 * sigmoid(-6.0) - 1]
        np.testing.assert_allclose(mean["probability_margin"][:2], margins, rtol=1e-6)
        self.assertEqual(masked["last_correct"].tolist(), [1, -1, -1])
        self.assertEqual(masked["wrong_predictions"].tolist(), [0, 0, 0])


class LearnerTest(absltest.TestCase):
    def test_the_compiled_step_records_the_logits_from_before_its_update(self):
        learner, _ = toy.learner("supervised", weak_augmentation="none")
        batches = learner.batches(0)
        expected = []
        for step in range(3):
            indices = batches[step][0]["labeled"]
            logits = learner.network(learner.images(indices), training=True)
            expected.append((indices, learner.task.given_labels[indices], logits))
            # The pass above has moved the running statistics, which training mode never reads.
            toy.fit(learner, steps=1, start=step)
        kept, wanted = learner.example_record(), take_in(expected, toy.NUM_EXAMPLES)
        for name, values in wanted.items():
            np.testing.assert_allclose(kept[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
        self.assertEqual(kept["observations"].sum(), 12)

    def test_it_is_saved_and_goes_on(self):
        learner, _ = toy.learner("supervised")
        toy.fit(learner, steps=7)
        path = self.create_tempfile("learner.keras").full_path
        learner.save(path)
        loaded = keras.models.load_model(path)
        loaded.attach(learner.task)
        for name, values in learner.example_record().items():
            np.testing.assert_array_equal(loaded.example_record()[name], values, name)

    def test_a_learner_without_a_record_says_so(self):
        learner, _ = toy.learner("supervised", record_examples=False)
        with self.assertRaisesRegex(ValueError, "record_examples=False"):
            learner.example_record()


if __name__ == "__main__":
    absltest.main()
