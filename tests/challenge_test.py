# SPDX-License-Identifier: Apache-2.0
"""The scores of the challenge: numbers by hand, and the organizers' own on the real labels."""

import hashlib
import json
import os
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy import challenge, files, settings
from ssl_noisy.data import cifar_n

REAL = os.environ.get("CIFAR_N_DIR", "")  # a folder with the published files

# The organizers' toy detection flags the corrupted labels among the first 25,000. Their file states
# the figures of `worst`; their formula, run on the published labels, gives the others.
TOY_SCORES = {
    "aggre": (0.5052164261931188, 0.671287420734405),
    "rand1": (0.49866542880352793, 0.6654793247638222),
    "rand2": (0.5053526100871868, 0.6714076246334311),
    "rand3": (0.5090702947845805, 0.6746806912096168),
    "worst": (0.5045264623955432, 0.6706780837769035),
    "noisy100": (0.5087064676616916, 0.674361088211047),
}


def mask(text):
    """Returns a bool array: mask("110") is [True, True, False]."""
    return np.array(list(text)) == "1"


class DetectionScoreTest(parameterized.TestCase):
    @parameterized.parameters(
        # flagged, corrupted, precision, recall, f1
        ("11001", "10101", 2 / 3, 2 / 3, 2 / 3),
        ("11000000", "10111000", 1 / 2, 1 / 4, 1 / 3),
        ("1111", "0100", 1 / 4, 1, 2 / 5),
        ("0101", "0101", 1, 1, 1),
        ("1010", "0101", 0, 0, 0),
        ("0000", "0101", 0, 0, 0),  # NaN in the organizers' program
        ("0101", "0000", 0, 0, 0),
        ("0000", "0000", 0, 0, 0),
        ("", "", 0, 0, 0),
    )
    def test_by_hand(self, flagged, corrupted, *expected):
        score = challenge.detection_score(mask(flagged), mask(corrupted))
        self.assertEqual(list(score), ["precision", "recall", "f1"])
        for found, value in zip(score.values(), expected):
            self.assertIs(type(found), float)
            self.assertAlmostEqual(found, value, places=15)

    @parameterized.named_parameters(
        ("integers", np.array([1, 0]), mask("10"), "flagged must be bool", "int64 (2,)"),
        ("floats", np.array([0.7, 0.1]), mask("10"), "flagged must be bool", "float64"),
        ("length", mask("101"), mask("10"), "flagged must be bool", "bool (3,)"),
        ("column", mask("10")[:, None], mask("10"), "flagged must be bool", "(2, 1)"),
        ("truth", mask("10"), np.array([1, 0]), "corrupted must be bool", "int64 (2,)"),
        ("matrices", np.ones((2, 2), bool), np.ones((2, 2), bool), "flagged", "(2, 2)"),
    )
    def test_errors(self, flagged, corrupted, *parts):
        with self.assertRaises(challenge.ChallengeError) as raised:
            challenge.detection_score(flagged, corrupted)
        for part in parts:
            self.assertIn(part, str(raised.exception))

    def test_interval(self):
        rng = np.random.default_rng(0)
        corrupted = rng.random(2_000) < 0.3
        flagged = corrupted ^ (rng.random((2, 2_000)) < 0.1)
        low, high = challenge.f1_interval(flagged, corrupted)
        # The same bootstrap, with the examples drawn one by one.
        means = []
        for _ in range(500):
            rows = rng.integers(0, 2_000, 2_000)
            drawn = [challenge.detection_score(run[rows], corrupted[rows])["f1"] for run in flagged]
            means.append(np.mean(drawn))
        np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5]), atol=0.004)
        self.assertEqual((low, high), challenge.f1_interval(flagged, corrupted))
        self.assertNotEqual((low, high), challenge.f1_interval(flagged, corrupted, seed=1))
        self.assertEqual(challenge.f1_interval(corrupted[None], corrupted), (1, 1))
        self.assertEqual(challenge.f1_interval(np.zeros((1, 2_000), bool), corrupted), (0, 0))


class LearningScoreTest(parameterized.TestCase):
    def test_the_subset_is_that_of_the_organizers_program(self):
        """Python's generator, seeded with 10, which is the default seed of their programs."""
        subset = challenge.scored_subset(10)
        self.assertEqual(subset[:5].tolist(), [9361, 533, 7026, 7906, 9471])
        self.assertEqual((len(subset), len(set(subset.tolist()))), (8000, 8000))
        self.assertEqual(challenge.scored_subset(10, 10).tolist(), [9, 0, 6, 3, 4, 8, 1, 7])

    def test_the_subset_of_the_rules_is_with_replacement(self):
        subset = challenge.scored_subset(10, with_replacement=True)
        self.assertLen(subset, 8000)
        # By hand: 10,000 (1 - (1 - 1/10,000)^8,000) = 5,507 different ones are expected.
        self.assertBetween(len(set(subset.tolist())), 5_400, 5_600)
        self.assertBetween(subset.min(), 0, 20)
        self.assertBetween(subset.max(), 9_980, 9_999)

    def test_by_hand(self):
        labels = np.arange(10)
        predictions = labels.copy()
        predictions[[1, 2, 3]] = 9  # of these, example 2 is not in the subset of seed 10
        score = challenge.learning_score(predictions, labels, 10)
        self.assertEqual(score["accuracy"], 0.7)
        self.assertEqual(score["subset_accuracy"], 6 / 8)
        again = challenge.scored_subset(10, 10, with_replacement=True)
        self.assertEqual(score["resampled_accuracy"], np.mean(~np.isin(again, [1, 2, 3])))

    @parameterized.named_parameters(
        ("floats", np.zeros(3), "float64 (3,)"),
        ("length", np.zeros(4, int), "int64 (4,)"),
        ("logits", np.zeros((3, 10), int), "int64 (3, 10)"),
        ("bools", np.zeros(3, bool), "bool (3,)"),
    )
    def test_errors(self, predictions, part):
        with self.assertRaisesRegex(challenge.ChallengeError, "predictions must be integers") as e:
            challenge.learning_score(predictions, np.zeros(3, int), 0)
        self.assertIn(part, str(e.exception))

    def test_interval(self):
        correct = np.arange(10_000) % 10 > 0  # 90 %
        low, high = challenge.accuracy_interval(correct[None])
        # By hand: 1.96 sqrt(0.9 * 0.1 / 10,000) = 0.0059.
        np.testing.assert_allclose([low, high], [0.8941, 0.9059], atol=0.0006)
        # Two equal runs say no more than one.
        self.assertEqual(challenge.accuracy_interval([correct, correct]), (low, high))
        # Two runs that are never wrong together. By hand: an example counts 1/2 with probability
        # 0.2, else 1. The variance is 0.04, and 1.96 sqrt(0.04 / 10,000) = 0.0039.
        other = np.arange(10_000) % 10 != 1
        narrow = challenge.accuracy_interval([correct, other])
        np.testing.assert_allclose(narrow, [0.9 - 0.0039, 0.9 + 0.0039], atol=0.0005)


class RankingTest(absltest.TestCase):
    def test_over_seeds(self):
        # By hand: mean 2, squared deviations 1, 0, 1, over 3 - 1.
        self.assertEqual(challenge.over_seeds([1, 2, 3]), {"mean": 2, "std": 1})
        self.assertEqual(challenge.over_seeds([0.5]), {"mean": 0.5})

    def test_borda(self):
        found = challenge.borda(
            {
                "aggre": {"a": 0.9, "b": 0.8, "c": 0.8},
                "rand1": {"a": 0.7, "b": 0.9},
                "worst": {"c": 0.1},
            }
        )
        ranks = {name: list(one["ranks"].values()) for name, one in found.items()}
        self.assertEqual(ranks, {"a": [1, 2, 3], "b": [2, 1, 3], "c": [2, 3, 1]})
        self.assertEqual(found["a"]["points"], 10 + 9 + 8)
        self.assertEqual(found["c"]["points"], 9 + 8 + 10)

    def test_borda_gives_no_negative_points(self):
        found = challenge.borda({"worst": {str(i): -i for i in range(13)}})
        points = [one["points"] for one in found.values()]
        self.assertEqual(points, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0])


class FormatTest(absltest.TestCase):
    def test_regimes_are_those_of_the_label_reader(self):
        for name, regime in challenge.REGIMES.items():
            if regime.key != "clean_label":
                self.assertIn(name, cifar_n.KEYS[regime.dataset][regime.key])
                names = (regime.key, *cifar_n.KEYS[regime.dataset][regime.key])
                self.assertIn(regime.tfds_feature, names)
        ranked = [name for name, regime in challenge.REGIMES.items() if regime.is_ranked]
        self.assertEqual(ranked, ["aggre", "rand1", "worst", "noisy100"])

    def test_free_flags_exist(self):
        names = {field.name for field in settings.fields()}
        self.assertContainsSubset(challenge.FREE_FLAGS, names)

    def test_hash_is_that_of_the_content(self):
        expected = hashlib.sha256(b'{"lr":0.1,"steps":3}').hexdigest()
        self.assertEqual(challenge.config_hash({"steps": 3, "lr": 0.1}), expected)
        self.assertNotEqual(challenge.config_hash({"steps": 3, "lr": 0.2}), expected)

    def test_write_run(self):
        root = self.enter_context(tempfile.TemporaryDirectory())
        folder = pathlib.Path(challenge.run_folder(root, "worst", 3))
        self.assertEqual(folder, pathlib.Path(root, "worst", "seed_3"))
        challenge.write_run(
            folder,
            flags={"seed": 3},
            seconds=20,
            baseline_seconds=7.5,
            detection=mask("0110"),
            predictions=np.array([2, 1], "int8"),
        )
        names = {"config.json", "timing.json", "detection.npy", "predictions.npy"}
        self.assertEqual({path.name for path in folder.iterdir()}, names)
        self.assertEqual(files.read_npy(folder / "detection.npy").tolist(), mask("0110").tolist())
        self.assertEqual(files.read_npy(folder / "predictions.npy").tolist(), [2, 1])
        config = json.loads((folder / "config.json").read_text())
        self.assertEqual(config["sha256"], challenge.config_hash(config["flags"]))
        timing = json.loads((folder / "timing.json").read_text())
        self.assertEqual(timing, {"seconds": 20, "baseline_seconds": 7.5, "limit_seconds": 75})


class RealLabelsTest(absltest.TestCase):
    if os.path.isdir(REAL):

        def test_toy_scores_to_the_last_digit(self):
            published = {"cifar10": "CIFAR-10_human.pt", "cifar100": "CIFAR-100_human.pt"}
            for name, (recall, f1) in TOY_SCORES.items():
                regime = challenge.REGIMES[name]
                raw = pathlib.Path(REAL, published[regime.dataset]).read_bytes()
                columns = cifar_n._arrays(raw, regime.key)
                corrupted = columns[regime.key] != columns["clean_label"]
                toy = corrupted & (np.arange(challenge.NUM_TRAIN) < 25_000)
                score = challenge.detection_score(toy, corrupted)
                self.assertEqual(score, {"precision": 1.0, "recall": recall, "f1": f1}, name)


if __name__ == "__main__":
    absltest.main()
