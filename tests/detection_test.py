# SPDX-License-Identifier: Apache-2.0
import csv
import json
import os
import pathlib
import tempfile
import warnings

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats
from sklearn import metrics

from ssl_noisy.labels import detection, mixture_model

NAN = np.nan


def quantiles(alpha, beta, count):
    """Returns `count` quantiles of a beta density, in place of a random sample."""
    return stats.beta.ppf((np.arange(count) + 0.5) / count, alpha, beta)


def losses(clean=(2, 12), noisy=(8, 3), counts=(400, 200)):
    return np.concatenate([3 * quantiles(*clean, counts[0]), 3 * quantiles(*noisy, counts[1])])


def record(**changes):
    """Returns a record of six labels: the 4th seen once, the last never."""
    made = {
        "observations": np.array([4, 4, 4, 1, 4, 0]),
        "aum": np.array([2.0, -1.0, 0.0, NAN, 0.5, NAN]),
        "margin": np.array([1.0, -2.0, 0.5, 3.0, -0.25, NAN]),
        "loss": np.array([0.3, 4.0, 0.6, 2.0, 1.5, NAN]),
        "mean_loss": np.array([0.25, 3.0, 1.0, 2.0, 1.0, NAN]),
        "label_probability": np.array([0.75, 0.25, 0.5, 0.25, 0.5, NAN]),
        "probability_margin": np.array([0.5, -0.5, 0.0, -0.125, 0.25, NAN]),
        "agreement": np.array([1.0, 0.25, 0.5, 0.0, 0.75, NAN]),
        "wrong_predictions": np.array([0, 3, 2, 1, 1, 0]),
        "prediction": np.array([0, 2, 1, 3, 2, -1]),
        "last_correct": np.array([1, 0, 1, 0, 0, -1]),
        "forgetting_events": np.array([0, 1, 1, 0, 2, 0]),
        "cores": np.array([-2.0, 1.5, 0.0, 0.5, -0.5, NAN]),
    }
    return {**made, **changes}


POSTERIOR = np.array([0.0, 1.0, 0.5, 0.625, 0.375, NAN])
RATE = 0.5  # of 5 labels, 2.5, rounded to 2


DETECTORS = ["probability_margin", "aum", "small_loss", "posterior", "agreement"]
DETECTORS += ["wrong_predictions", "cores"]


def detector(score, flagged):
    return detection.Detector(np.array(score, "float64"), np.array(flagged, bool))


class PosteriorTest(parameterized.TestCase):
    def test_fits_what_lies_between_the_percentiles(self):
        values = losses()
        fitted, x, posterior = detection.fit_posterior(values)
        low, high = np.percentile(values, [5, 95])
        low_moved = low + 1e-5
        scaled = np.clip((values - low_moved) / (high - low_moved + 1e-6), 0.001, 0.999)
        np.testing.assert_allclose(x, scaled, atol=1e-12)
        within = scaled[(values >= low) & (values <= high)]
        self.assertLen(within, 540)
        expected = mixture_model.BetaMixtureModel(max_iter=10, tol=0, init_params="kmeans").fit(
            within
        )
        for name in ("alphas_", "betas_", "weights_"):
            np.testing.assert_allclose(getattr(fitted, name), getattr(expected, name), rtol=1e-6)
        np.testing.assert_allclose(posterior, expected.predict_proba(x)[:, 1], rtol=1e-6)

    def test_the_unknown_stays_so_and_changes_nothing(self):
        values = losses()
        _, x, posterior = detection.fit_posterior(values)
        places = np.arange(len(values)) + np.arange(len(values)) // 100
        spread = np.full(places[-1] + 3, NAN)
        spread[places] = values
        spread[[100, -1]] = np.inf, -np.inf
        _, spread_x, spread_posterior = detection.fit_posterior(spread)
        np.testing.assert_array_equal(spread_x[places], x)
        np.testing.assert_array_equal(spread_posterior[places], posterior)
        unknown = np.setdiff1d(np.arange(len(spread)), places)
        self.assertTrue(np.isnan([spread_x[unknown], spread_posterior[unknown]]).all())

    def test_estimates_the_share_of_large_losses(self):
        for counts, rate in (((400, 200), 1 / 3), ((500, 100), 1 / 6), ((300, 300), 0.5)):
            fitted, _, posterior = detection.fit_posterior(losses(counts=counts))
            self.assertAlmostEqual(posterior.mean(), rate, delta=0.03)
            self.assertTrue(fitted.is_bimodal_)
            self.assertLess(posterior[: counts[0]].mean(), 0.1)
            self.assertGreater(posterior[counts[0] :].mean(), 0.9)

    @parameterized.named_parameters(
        # A narrow noisy component has a peak, beyond which the posterior falls again.
        ("peak", dict(clean=(1, 2), noisy=(100, 80), counts=(400, 400)), True),
        # A narrow clean component has a peak, below which the posterior rises again.
        ("valley", dict(clean=(20, 60), noisy=(1, 1)), False),
    )
    def test_never_falls_as_the_loss_grows(self, sample, is_peak):
        values = losses(**sample)
        fitted, x, posterior = detection.fit_posterior(values)
        raw = fitted.predict_proba(x)[:, 1]
        order = np.argsort(values)
        self.assertLess(np.diff(raw[order]).min(), -0.01)
        self.assertGreaterEqual(np.diff(posterior[order]).min(), 0)
        turn = np.argmax(raw[order]) if is_peak else np.argmin(raw[order])
        kept, flat = (slice(None, turn), slice(turn, None))[:: 1 if is_peak else -1]
        np.testing.assert_allclose(posterior[order][kept], raw[order][kept], atol=1e-6)
        np.testing.assert_allclose(posterior[order][flat], raw[order][turn], atol=1e-6)

    def test_order_of_nearly_extreme_losses(self):
        # 0.9995 of the range would lie above what is beyond it, at 0.999.
        values = np.concatenate([losses(), [0.0, 9.0]])
        low, high = np.percentile(values, [5, 95])
        values[:2] = low + 0.0005 * (high - low), high - 0.0005 * (high - low)
        _, x, posterior = detection.fit_posterior(values)
        order = np.argsort(values)
        self.assertGreaterEqual(np.diff(x[order]).min(), 0)
        self.assertGreaterEqual(np.diff(posterior[order]).min(), 0)
        self.assertEqual((x.min(), x.max()), (0.001, 0.999))

    @parameterized.named_parameters(
        ("none", np.zeros(0)),
        ("unseen", np.full(30, NAN)),
        ("few", np.concatenate([np.arange(9.0), [NAN] * 20])),
        ("constant", np.full(50, 2.5)),
        ("constant_but_for_one", np.array([7.0] + [2.5] * 49)),
    )
    def test_nothing_to_fit(self, values):
        fitted, x, posterior = detection.fit_posterior(values)
        self.assertIsNone(fitted)
        self.assertEqual((x.shape, posterior.shape), (values.shape, values.shape))
        self.assertTrue(np.isnan(x).all() and np.isnan(posterior).all())

    def test_ten_losses_are_fitted(self):
        fitted, _, posterior = detection.fit_posterior(np.arange(10.0))
        self.assertIsNotNone(fitted)
        self.assertTrue(np.isfinite(posterior).all())


class DetectorsTest(parameterized.TestCase):
    def test_scores_and_flags(self):
        found = detection.detectors(record(), POSTERIOR, RATE)
        self.assertEqual(list(found), DETECTORS)
        expected = {
            "probability_margin": ([-0.5, 0.5, 0, 0.125, -0.25, NAN], [0, 1, 0, 1, 0, 0]),
            "aum": ([-2, 1, 0, NAN, -0.5, NAN], [0, 1, 0, 0, 0, 0]),
            "small_loss": ([0.25, 3, 1, 2, 1, NAN], [0, 1, 0, 1, 0, 0]),
            "posterior": ([0, 1, 0.5, 0.625, 0.375, NAN], [0, 1, 0, 1, 0, 0]),
            "agreement": ([0, 0.75, 0.5, 1, 0.25, NAN], [0, 1, 0, 1, 0, 0]),
            # Five counts are too few for a mixture.
            "wrong_predictions": ([0, 3, 2, 1, 1, NAN], [0, 0, 0, 0, 0, 0]),
            "cores": ([-2, 1.5, 0, 0.5, -0.5, NAN], [0, 1, 0, 1, 0, 0]),
        }
        for name, (score, flagged) in expected.items():
            np.testing.assert_array_equal(found[name].score, score, name)
            np.testing.assert_array_equal(found[name].flagged, np.array(flagged, bool), name)
            self.assertEqual(found[name].flagged.dtype, bool)

    def test_wrong_predictions_of_several_passes_count_per_pass(self):
        made = record() | {"wrong_predictions": np.array([0, 6, 4, 1, 1, 0])}
        made["passes"] = np.array([2, 2, 2, 1, 1, 0])
        score = detection.detectors(made, np.full(6, NAN), 0.0)["wrong_predictions"].score
        np.testing.assert_array_equal(score, [0, 3, 2, 1, 1, NAN])

    def test_wrong_predictions_above_the_valley_of_their_mixture(self):
        counts = np.repeat([0, 1, 2, 3, 7, 8, 9, 10], [40, 30, 10, 5, 5, 10, 15, 20])
        blank = np.zeros(len(counts))
        made = {name: blank for name in (*record(), "observations")}
        made.update(observations=blank + 10, wrong_predictions=counts)
        made["wrong_predictions"][-1], made["observations"][-1] = 0, 0  # never seen
        found = detection.detectors(made, blank, 0.0)["wrong_predictions"]
        np.testing.assert_array_equal(found.flagged[:-1], counts[:-1] >= 7)
        np.testing.assert_array_equal(found.score, [*counts[:-1], NAN])

    @parameterized.parameters((0.0, [1]), (-1.0, []), (0.5, [1, 2]), (0.6, [1, 2, 4]))
    def test_aum_threshold(self, threshold, flagged):
        found = detection.detectors(record(), POSTERIOR, RATE, aum_threshold=threshold)["aum"]
        self.assertEqual(np.flatnonzero(found.flagged).tolist(), flagged)

    def test_flags_of_the_aum_method(self):
        flags = np.array([1, 0, 0, 1, 1, 1], bool)
        found = detection.detectors(record(), POSTERIOR, RATE, aum_flagged=flags)["aum"]
        # Observed too rarely to have an area: never flagged.
        self.assertEqual(np.flatnonzero(found.flagged).tolist(), [0, 4])

    @parameterized.parameters(
        (0.1, []),  # 0.5 of an example
        (0.28, [1]),  # 1.4
        (0.36, [1, 3]),  # 1.8
        (0.6, [1, 2, 3]),  # of two equal losses, the earlier one
        (1.0, [0, 1, 2, 3, 4]),
    )
    def test_small_loss_flags_as_many_as_estimated(self, rate, flagged):
        found = detection.detectors(record(), POSTERIOR, rate)["small_loss"]
        self.assertEqual(np.flatnonzero(found.flagged).tolist(), flagged)

    def test_an_infinite_score_is_unknown(self):
        changed = record(mean_loss=np.array([0.25, np.inf, 1, 2, 1, NAN]))
        found = detection.detectors(changed, POSTERIOR, RATE)["small_loss"]
        np.testing.assert_array_equal(found.score, [0.25, NAN, 1, 2, 1, NAN])
        self.assertEqual(np.flatnonzero(found.flagged).tolist(), [2, 3])  # 0.5 * 4 of them

    def test_nothing_seen(self):
        unseen = {n: np.full(6, NAN) for n, v in record().items() if v.dtype.kind == "f"}
        unseen["observations"] = np.zeros(6, int)
        found = detection.detectors(record(**unseen), np.full(6, NAN), 0.0)
        for one in found.values():
            self.assertFalse(one.flagged.any())
            self.assertTrue(np.isnan(one.score).all())


class MeasureTest(parameterized.TestCase):
    def test_literals(self):
        # Of the known: ranks by score are wrong, right, wrong, wrong, right, right.
        one = detector([9, 7, NAN, 5, 3, 2, 1, NAN], [1, 1, 0, 1, 0, 1, 0, 0])
        wrong = np.array([1, 0, 1, 1, 1, 0, 0, 0], bool)
        expected = {
            "flagged": 4,
            "precision": 2 / 4,
            "recall": 2 / 3,
            "f1": 4 / 7,
            "average_precision": (1 / 1 + 2 / 3 + 3 / 4) / 3,
            "precision_at_true_count": 2 / 3,
            "false_negative_rate": 1 / 3,
        }
        found = detection.measure(one, wrong)
        self.assertEqual(list(found), list(expected))
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-12)

    def test_ties_take_their_mean_share(self):
        score = [3, 2, 2, 2, 2, 1]
        for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 3, 5, 1, 4]):
            wrong = np.array([1, 1, 0, 0, 0, 1], bool)[order]
            one = detector(np.array(score)[order], np.zeros(6))
            # One of the three lies above; the tie of four holds one, and two places are left.
            measured = detection.measure(one, wrong)
            self.assertEqual(measured["precision_at_true_count"], 1.5 / 3)
            self.assertEqual(measured["false_negative_rate"], 1.5 / 3)

    def test_agrees_with_the_definitions(self):
        rng = np.random.default_rng(0)
        wrong, score = rng.random(500) < 0.3, rng.random(500)
        score[wrong] += 0.3
        flagged = score > 0.8
        found = detection.measure(detector(score, flagged), wrong)
        hits = (wrong & flagged).sum()
        self.assertAlmostEqual(found["precision"], hits / flagged.sum())
        self.assertAlmostEqual(found["recall"], hits / wrong.sum())
        self.assertAlmostEqual(found["f1"], 2 * hits / (flagged.sum() + wrong.sum()))
        most = np.argsort(-score)[: wrong.sum()]
        self.assertAlmostEqual(found["precision_at_true_count"], wrong[most].mean())
        missed = np.setdiff1d(np.flatnonzero(wrong), most)  # by a review of as many as are wrong
        self.assertAlmostEqual(found["false_negative_rate"], len(missed) / wrong.sum())
        expected = metrics.average_precision_score(wrong, score)
        self.assertAlmostEqual(found["average_precision"], expected)

    @parameterized.named_parameters(
        ("none_wrong_none_flagged", [0, 0], [0, 0], [0, None, None, None, None, None, None]),
        ("none_wrong", [0, 1], [0, 0], [1, 0.0, None, 0.0, None, None, None]),
        ("none_flagged", [0, 0], [0, 1], [0, None, 0.0, 0.0, 1.0, 1.0, 0.0]),
        ("all", [1, 1], [1, 1], [2, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
    )
    def test_undefined_is_none(self, flagged, wrong, expected):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = detection.measure(detector([1, 2], flagged), np.array(wrong, bool))
        self.assertEqual(list(found.values()), expected)
        json.dumps(found, allow_nan=False)

    @parameterized.parameters(0, 3)
    def test_nothing_known(self, size):
        found = detection.measure(detector([NAN] * size, [0] * size), np.ones(size, bool))
        self.assertEqual(list(found.values()), [0, None, None, None, None, None, None])

    def test_rank_agreement(self):
        found = detection.rank_agreement(
            {
                "a": detector([1, 2, 3, 4, NAN], [0] * 5),
                "b": detector([1, 30, 20, 400, 5], [0] * 5),
                "c": detector([NAN, 4, 3, 2, 1], [0] * 5),
                "constant": detector([7] * 5, [0] * 5),
                "rare": detector([1, NAN, NAN, NAN, 0], [0] * 5),
            }
        )
        self.assertAlmostEqual(found["a"]["b"], 0.8)  # 1 - 6 * 2 / (4 * 15)
        self.assertAlmostEqual(found["a"]["c"], -1.0)
        self.assertAlmostEqual(found["b"]["c"], 0.4)  # ranks 3241 and 4321: 1 - 6 * 6 / 60
        self.assertAlmostEqual(found["a"]["a"], 1.0)
        self.assertIsNone(found["a"]["rare"])
        self.assertIsNone(found["constant"]["b"])
        self.assertIsNone(found["constant"]["constant"])
        for name, row in found.items():
            self.assertEqual(list(row), list(found))
            for other, value in row.items():
                self.assertEqual(value, found[other][name])
        json.dumps(found, allow_nan=False)


class ReportTest(parameterized.TestCase):
    def test_with_the_truth(self):
        found = detection.detectors(record(), POSTERIOR, RATE)
        wrong = np.array([0, 1, 0, 0, 0, 1], bool)
        made = detection.report(found, RATE, wrong)
        self.assertEqual(made["estimated_noise_rate"], 0.5)
        self.assertEqual(made["noise_rate"], 2 / 6)
        self.assertAlmostEqual(made["noise_rate_error"], 1 / 6)
        self.assertEqual(made["rank_agreement"], detection.rank_agreement(found))
        self.assertEqual(list(made["detectors"]), list(found))
        for name, one in found.items():
            self.assertEqual(made["detectors"][name], detection.measure(one, wrong))
        json.dumps(made, allow_nan=False)
        lines = detection.describe(made).splitlines()
        self.assertEqual(
            [lines[0].split(), lines[3].split()],
            [
                ["detector", "flagged", "precision", "recall", "f1", "AP"]
                + ["missed", "by", "review"],
                ["small_loss", "2", "0.500", "1.000", "0.667", "1.000", "0.000"],
            ],
        )
        self.assertLess(max(map(len, lines)), 80)
        self.assertLen(lines, 8)
        self.assertLen(set(map(len, lines)), 1)  # columns are aligned

    def test_without_the_truth(self):
        found = detection.detectors(record(), POSTERIOR, RATE)
        made = detection.report(found, RATE)
        self.assertEqual(made["detectors"]["agreement"], {"flagged": 2})
        self.assertNotIn("noise_rate", made)
        self.assertEqual(detection.describe(made).splitlines()[5].split(), ["agreement", "2"])

    def test_nothing_known(self):
        unseen = {n: np.full(6, NAN) for n, v in record().items() if v.dtype.kind == "f"}
        unseen["observations"] = np.zeros(6, int)
        found = detection.detectors(record(**unseen), np.full(6, NAN), 0.0)
        made = detection.report(found, 0.0, np.zeros(6, bool))
        self.assertEqual((made["estimated_noise_rate"], made["noise_rate_error"]), (0.0, 0.0))
        json.dumps(made, allow_nan=False)
        self.assertIn(" -", detection.describe(made))


class ExamplesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = pathlib.Path(folder, "run", "examples.csv")
        self.ids = np.array([3, 10, 11, 40, 41, 2**40])
        self.given = np.array([0, 1, 1, 2, 3, 0], "int32")
        self.issues = np.array([0, 1, 0, 1, 0, 0], bool)
        self.quality = 1 - POSTERIOR

    def write(self, **changes):
        made, found = record(**changes), detection.detectors(record(**changes), POSTERIOR, RATE)
        detection.examples_csv(
            self.path, self.ids, self.given, made, found, self.quality, self.issues
        )
        return made

    def test_what_is_written(self):
        self.write()
        with open(self.path, newline="") as file:
            rows = list(csv.reader(file))
        self.assertEqual(
            ",".join(rows[0]),
            "index,file,given_label,given_class,predicted_label,predicted_class,label_quality,is_label_issue,"
            "margin,aum,loss,mean_loss,cores,posterior,label_probability,probability_margin,observations,agreement,"
            "wrong_predictions,last_correct,forgetting_events",
        )
        row = "10,,1,1,2,2,0.0,True,-2.0,-1.0,4.0,3.0,1.5,1.0,0.25,-0.5,4,0.25,3,0,1"
        self.assertEqual(",".join(rows[2]), row)
        self.assertEqual(",".join(rows[6]), "1099511627776,,0,0,-1,,,False,,,,,,,,,0,,0,-1,0")
        self.assertLen(rows, 7)
        self.assertEqual(os.listdir(self.path.parent), ["examples.csv"])

    def test_files_names_and_the_order_of_suspicion(self):
        made, found = record(), detection.detectors(record(), POSTERIOR, RATE)
        files = [f"ä{number}, b.png" for number in range(6)]
        detection.examples_csv(
            *(self.path, self.ids, self.given, made, found, self.quality, self.issues),
            files=files,
            class_names=("cat", "dog", "hen", "ox"),
            order="suspicion",
        )
        with open(self.path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        order = np.argsort(self.quality, kind="stable")
        self.assertTrue(np.isnan(self.quality[order[-1]]))
        self.assertEqual([row["file"] for row in rows], [files[place] for place in order])
        named = {row["file"]: row for row in rows}
        self.assertEqual(
            (named[files[1]]["given_class"], named[files[1]]["predicted_class"]), ("dog", "hen")
        )
        self.assertEqual(named[files[5]]["predicted_class"], "")
        back = detection.read_examples(self.path)
        self.assertEqual(back["index"].tolist(), self.ids.tolist())
        self.assertEqual(back["file"].tolist(), files)
        np.testing.assert_array_equal(back["label_quality"], self.quality)

    def test_reads_back_the_same_numbers(self):
        rng = np.random.default_rng(0)
        exact = {
            "aum": rng.normal(size=6) * 10.0 ** np.arange(-150, 150, 50),
            "margin": rng.normal(size=6).astype("float32"),
            "mean_loss": np.array([0.1, 1 / 3, 5e-324, np.pi, NAN, 1e300]),
        }
        made = self.write(**exact)
        found = detection.read_examples(self.path)
        self.assertEqual(list(found), list(detection.COLUMNS))
        expected = {
            "index": self.ids,
            "given_label": self.given,
            "predicted_label": made["prediction"],
            "label_quality": self.quality,
            "is_label_issue": self.issues,
            "posterior": POSTERIOR,
        }
        classes = [str(label) if label >= 0 else "" for label in made["prediction"]]
        expected |= {"file": [""] * 6, "given_class": list(map(str, self.given))}
        expected["predicted_class"] = classes
        kinds = {int: "i", float: "f", bool: "b", str: "U"}
        for name, kind in detection.COLUMNS.items():
            np.testing.assert_array_equal(found[name], expected.get(name, made.get(name)), name)
            self.assertEqual(found[name].dtype.kind, kinds[kind], name)

    def test_order_of_columns_and_further_ones_are_free(self):
        self.write()
        with open(self.path, newline="") as file:
            rows = [row[::-1] + ["note"] for row in csv.reader(file)]
        with open(self.path, "w", newline="") as file:
            csv.writer(file).writerows(rows)
        found = detection.read_examples(self.path)
        self.assertEqual(found["index"].tolist(), self.ids.tolist())
        self.assertEqual(list(found), list(detection.COLUMNS))

    def test_whole_or_not_at_all(self):
        self.write()
        before = self.path.read_bytes()
        self.quality = self.quality[:5]
        with self.assertRaisesRegex(ValueError, "same length.*given_label 6, .*label_quality 5"):
            self.write()
        self.assertEqual(self.path.read_bytes(), before)
        self.assertEqual(os.listdir(self.path.parent), ["examples.csv"])

    @parameterized.named_parameters(
        ("no_column", b"aum,", b"area,", "no column aum"),
        ("words", b"True", b"yes", "yes"),
        ("no_number", b"-2.0", b"x\n", "x"),
        ("short", b",4,0.25,3,0,1", b"", "NoneType"),
        ("float_count", b"\n10,", b"\n10.5,", "10.5"),
        ("large", b"\n10,", b"\n" + b"9" * 30 + b",", "too large"),
        ("binary", b"\n10,", b"\n\xff\xfe,", "0xff"),
    )
    def test_malformed(self, old, new, part):
        self.write()
        content = self.path.read_bytes()
        self.assertIn(old, content)
        self.path.write_bytes(content.replace(old, new))
        self.assert_refused(part)

    def test_empty(self):
        self.write()
        self.path.write_bytes(b"")
        self.assert_refused("no column index, file")

    def test_absent(self):
        self.assert_refused("No such file")

    def assert_refused(self, part):
        with self.assertRaises(detection.ExamplesFileError) as raised:
            detection.read_examples(self.path)
        for text in ("examples.csv' must have the format", part, "Regenerate the file."):
            self.assertIn(text, str(raised.exception))
        self.assertNotIn("\n", str(raised.exception))


if __name__ == "__main__":
    absltest.main()
