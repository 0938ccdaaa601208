# SPDX-License-Identifier: Apache-2.0
import dataclasses
import os
from unittest import mock

import numpy as np
from absl.testing import absltest

from ssl_noisy.data.task import Task
from ssl_noisy.errors import UserError
from ssl_noisy.labels import record
from ssl_noisy.runs import label_report, labeling, removal
from ssl_noisy.runs.training import Training
from ssl_noisy.settings import Settings


class LengthTest(absltest.TestCase):
    def test_the_length_of_a_pass(self):
        aum = {"batch_size": 100, "pass_batch_size": 25, "pass_share": 0.5}
        made = Settings(method="aum", steps=400, steps_per_epoch=100, method_arguments=aum)
        one = removal.pass_settings(made)
        self.assertEqual((one.method, one.schedule, one.remover), ("supervised", "constant", None))
        # Half of 400 steps of 100, in steps of 25, with as many evaluations per epoch.
        self.assertEqual((one.steps, one.steps_per_epoch), (800, 400))
        self.assertEqual(one.method_arguments["batch_size"], 25)
        self.assertTrue(one.method_arguments["record_examples"])
        several = removal.pass_settings(dataclasses.replace(made, steps_per_execution=50))
        self.assertEqual((several.steps % 50, several.steps_per_epoch % 50), (0, 0))

    def test_a_training_on_fewer_labels_keeps_its_epochs(self):
        made = Settings(method="aum", steps=430, steps_per_epoch=100)
        for fraction, expected in (
            (1.0, (430, 100)),
            (0.6, (258, 60)),  # 4 epochs of 60 and a last one of 18
            (0.595, (258, 60)),
            (0.594, (254, 59)),
            (0.001, (5, 1)),  # each epoch keeps a step
        ):
            fewer = removal.shortened(made, fraction)
            self.assertEqual((fewer.steps, fewer.steps_per_epoch), expected, fraction)
        whole = Settings(method="aum", steps=400, steps_per_epoch=100, steps_per_execution=20)
        fewer = removal.shortened(whole, 0.49)
        self.assertEqual((fewer.steps, fewer.steps_per_epoch), (160, 40))
        self.assertEqual((whole.steps, whole.steps_per_epoch), (400, 100))


class RemovalTest(absltest.TestCase):
    """Two passes over 22 labels, 2 of them threshold samples, with known areas."""

    def setUp(self):
        super().setUp()
        settings = Settings(method="aum", num_labels=22, steps=400, steps_per_epoch=100)
        dataset = labeling.load_dataset(settings)
        labels = labeling.choose(settings, dataset)
        task = Task.from_dataset(dataset, labels.positions, labels.given)
        run_dir = os.path.join(self.create_tempdir().full_path, "run")
        self.training = Training(settings, run_dir, dataset, labels, task)

    def remover(self, **arguments):
        learner = mock.Mock(threshold_samples="paper", threshold_percentile=99.0, **arguments)
        return removal.prepare(self.training, learner)

    def find(self, remover):
        """Returns what the passes find, and the trainings of the passes.

        Three examples have an area below the threshold: a threshold sample of the first pass,
        which only the second may judge, one example in both passes, and one in the first alone.
        """
        labels = self.training.labels.positions
        self.own = [np.flatnonzero(np.isin(labels, samples)) for samples in remover.samples]
        others = np.setdiff1d(np.arange(22), np.concatenate(self.own))
        self.sample, self.both, self.once = self.own[0][0], others[0], others[1]
        kept = []
        for highest in (0.5, 1.0):
            one = {name: np.full(22, 9.0) for name in record.MEANS}
            one |= {name: np.full(22, 3) for name in (*record.COUNTS, "last_correct")}
            one["prediction"] = np.full(22, 4)
            kept.append(one)
            one["aum"][self.own[len(kept) - 1]] = highest - 1.0, highest
            one["aum"][[self.sample, self.both]] = highest - 1.0
            one["aum"][others[2]] = highest  # at the threshold, which is not below it
        kept[0]["aum"][self.once] = 0.25
        kept[1]["prediction"][self.both] = 10  # the class of threshold samples
        trained = []
        with mock.patch.object(label_report, "read_record", side_effect=kept):
            return remover.find(train=trained.append), trained

    def flagged(self, *examples):
        return self.training.labels.positions[np.sort(examples)].tolist()

    def test_passes_judge_all_but_their_own_threshold_samples(self):
        removed, _ = self.find(self.remover(combine="and"))
        self.assertEqual(removed.positions.tolist(), self.flagged(self.sample, self.both))
        self.assertEqual(
            removed.summary(), {"count": 2, "thresholds": [0.5, 1.0], "num_threshold_samples": 2}
        )
        self.assertEqual(removed.record["aum"][self.both], -0.25)  # of -0.5 and 0.0
        self.assertEqual(removed.record["aum"][self.sample], 0.0)  # that of the second pass
        self.assertEqual(removed.record["observations"][[self.both, self.sample]].tolist(), [6, 3])
        self.assertEqual(removed.record["prediction"][self.both], 4)  # that of the first pass
        removed, _ = self.find(self.remover(combine="or"))
        self.assertEqual(
            removed.positions.tolist(), self.flagged(self.sample, self.both, self.once)
        )

    def test_a_pass_gives_its_threshold_samples_a_class_of_their_own(self):
        remover = self.remover(combine="and")
        _, trained = self.find(remover)
        for number, (one, samples) in enumerate(zip(trained, remover.samples, strict=True), 1):
            self.assertEqual(one.run_dir, os.path.join(self.training.run_dir, f"pass_{number}"))
            self.assertEqual((one.settings.method, one.task.num_classes), ("supervised", 11))
            given = one.task.given_labels
            np.testing.assert_array_equal(np.flatnonzero(given == 10), samples)
            rest = np.setdiff1d(np.arange(len(given)), samples)
            np.testing.assert_array_equal(given[rest], self.training.task.given_labels[rest])

    def test_training_continues_without_the_removed_labels(self):
        removed, _ = self.find(self.remover(combine="and"))
        for streams, steps in (({"labeled": 8}, 364), ({"labeled": 8, "unlabeled": 8}, 400)):
            learner = mock.Mock(**{"streams.return_value": streams})
            left = removed.apply(self.training, learner)
            self.assertEqual(left.settings.resolved().steps, steps)  # 20 of 22 labels
            self.assertEqual(len(left.task.labeled), 20)
            self.assertFalse(np.isin(removed.positions, left.task.labeled).any())
            self.assertIs(left.labels, self.training.labels)  # the report is about all of them

    def test_at_least_one_label_must_be_left(self):
        remover = self.remover(combine="or")
        one = {name: np.zeros(22) for name in (*record.MEANS, *record.COUNTS, "last_correct")}
        one |= {"aum": np.full(22, -1.0), "prediction": np.zeros(22, int)}
        with (
            mock.patch.object(label_report, "read_record", return_value=one),
            mock.patch.object(removal.aum, "threshold", return_value=2.0),
            self.assertRaisesRegex(UserError, "AUM flags all 22 labels.*--threshold_percentile=99"),
        ):
            remover.find(train=lambda one: None)


if __name__ == "__main__":
    absltest.main()
