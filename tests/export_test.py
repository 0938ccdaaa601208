# SPDX-License-Identifier: Apache-2.0
"""`examples.csv` in other tools: exact JSON, and cleanlab itself."""

import csv
import json
import os
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy.errors import UserError
from ssl_noisy.labels import detection, export, record

NAMES = ("cat", "dog", "emu & owl")
GIVEN = np.array([0, 1, 2, 0])
# Mean probabilities of the first three examples; the fourth was never seen.
PROBS = np.array([[0.6, 0.3, 0.1], [0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
QUALITY = np.array([0.75, 0.125, 0.5, np.nan])
IS_ISSUE = np.array([False, True, False, False])


def example_record():
    """Returns the record of two equal observations of each of the first three examples."""
    rows = record.initial(4, 3)
    for _ in range(2):
        rows = record.updated(rows, np.arange(3), GIVEN[:3], np.log(PROBS).astype("float32"))
    return record.read(rows, GIVEN)


class ExportCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.path, kept = os.path.join(self.folder, "examples.csv"), example_record()
        detectors = {"posterior": detection.Detector(np.zeros(4), np.zeros(4, bool))}
        ids = np.array([10, 11, 12, 13])
        detection.examples_csv(self.path, ids, GIVEN, kept, detectors, QUALITY, IS_ISSUE)

    def add_columns(self, **columns):
        with open(self.path, newline="") as file:
            rows = list(csv.DictReader(file))
        rows.sort(key=lambda row: int(row["index"]))
        for place, row in enumerate(rows):
            row.update({name: values[place] for name, values in columns.items()})
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows[::-1])  # the order of the rows does not matter

    def written(self, function, **kwargs):
        """Returns what an export function wrote."""
        to = os.path.join(self.folder, "out.json")
        function(self.path, to, **kwargs)
        with open(to, encoding="utf-8") as file:
            return json.load(file)

    def assert_json(self, found, wanted):
        """Compares exactly, floats to seven digits: those of the record are sums in float32."""
        digits = {float: lambda x: round(x, 7)}
        text = [
            json.dumps(rounded(value, digits), sort_keys=True, indent=1)
            for value in (found, wanted)
        ]
        self.assertEqual(*text)


def rounded(value, kinds):
    if isinstance(value, dict):
        return {k: rounded(v, kinds) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, kinds) for v in value]
    return kinds.get(type(value), lambda x: x)(value)


class FiftyOneTest(ExportCase):
    def test_the_file(self):
        files = ["a.jpg", "b/c.jpg", "d.jpg", "/elsewhere/e.jpg"]
        found = self.written(export.fiftyone, files=files, class_names=NAMES, folder="/data")
        self.assertEqual(found["classes"], list(NAMES))
        paths = ["/data/a.jpg", "/data/b/c.jpg", "/data/d.jpg", "/elsewhere/e.jpg"]
        self.assertEqual(list(found["labels"]), paths)
        self.assert_json(
            found["labels"]["/data/b/c.jpg"],
            {
                "label": 1,
                "confidence": 0.25,
                "attributes": {
                    "predicted_label": "cat",
                    "label_quality": 0.125,
                    "is_label_issue": True,
                    "probability_margin": -0.25,
                    "aum": float(np.float32(np.log(0.25)) - np.float32(np.log(0.5))),
                    "mean_loss": float(-np.log(0.25)),
                },
            },
        )
        unseen = {"label": 0, "confidence": None, "attributes": {"is_label_issue": False}}
        self.assert_json(found["labels"]["/elsewhere/e.jpg"], unseen)

    def test_columns_of_the_file(self):
        self.add_columns(
            file=["a.jpg", "b.jpg", "c.jpg", "d.jpg"],
            given_class=["cat", "dog", "owl", "cat"],
            predicted_class=["cat", "cat", "owl", ""],
        )
        found = self.written(export.fiftyone)
        self.assertEqual(found["classes"], ["cat", "dog", "owl"])
        self.assertEqual(list(found["labels"])[2], os.path.abspath("c.jpg"))

    def test_mistakes(self):
        for kwargs, message in (
            ({}, "does not name the files of the examples. Pass `files`"),
            ({"files": ["a"]}, "for each of the 4 rows of .* Received: 1"),
            ({"files": ["a"] * 4}, "Received: 1 files of 4 examples"),
            ({"files": list("abcd"), "class_names": NAMES[:2]}, "at least 3 names. Received: 2"),
        ):
            with self.assertRaisesRegex(UserError, message):
                self.written(export.fiftyone, **kwargs)
        self.assertFalse(os.path.exists(os.path.join(self.folder, "out.json")))
        self.add_columns(file=["a.jpg", "", "c.jpg", "d.jpg"])
        with self.assertRaisesRegex(UserError, "does not name the files"):
            self.written(export.fiftyone)


class LabelStudioTest(ExportCase):
    FILES = ("a.jpg", "b c.jpg", "d.jpg", "https://host/e.jpg")

    def tasks(self, **kwargs):
        kwargs = {"files": self.FILES, "class_names": NAMES, "folder": "/data/in"} | kwargs
        return self.written(export.label_studio, **kwargs)

    def test_the_tasks_begin_with_the_most_suspicious(self):
        found = self.tasks(root="/data")

        def prediction(version, score, name):
            choice = {"from_name": "label", "to_name": "image", "type": "choices"}
            scored = {} if score is None else {"score": score}
            value = {"value": {"choices": [name]}}
            return {"model_version": version, **scored, "result": [choice | value]}

        def task(image, index, given, predicted, quality, is_issue, probability):
            made = [prediction("given_label", quality, given)]
            if predicted is not None:
                made.append(prediction("predicted_label", probability, predicted))
            data = {"image": image, "index": index, "given_label": given}
            data |= {"predicted_label": predicted, "label_quality": quality}
            return {"data": {**data, "is_label_issue": is_issue}, "predictions": made}

        local = "/data/local-files/?d=in/"
        owl = "emu & owl"
        wanted = [
            task(local + "b%20c.jpg", 11, "dog", "cat", 0.125, True, 0.5),
            task(local + "d.jpg", 12, owl, owl, 0.5, False, 0.7),
            task(local + "a.jpg", 10, "cat", "cat", 0.75, False, 0.6),
            task("https://host/e.jpg", 13, "cat", None, None, False, None),
        ]
        self.assert_json(found, wanted)

    def test_only_issues(self):
        self.assertEqual([task["data"]["index"] for task in self.tasks(only_issues=True)], [11])
        image = self.tasks()[1]["data"]["image"]
        self.assertEqual(image, "/data/local-files/?d=d.jpg")

    def test_files_outside_the_root(self):
        with self.assertRaisesRegex(UserError, "Received: root='/other', and the file 'b c.jpg'"):
            self.tasks(root="/other")

    def test_config(self):
        self.assertEqual(
            export.label_studio_config(NAMES),
            '<View><Image name="image" value="$image"/><Choices name="label" toName="image" '
            'choice="single"><Choice value="cat"/><Choice value="dog"/>'
            '<Choice value="emu &amp; owl"/></Choices></View>',
        )


class CleanlabTest(ExportCase):
    def test_probabilities(self):
        # Of the second example the given and the predicted class are known, and the third has the
        # rest. Of the others the two other classes share it.
        wanted = [[0.6, 0.2, 0.2], [0.5, 0.25, 0.25], [0.15, 0.15, 0.7], [1 / 3] * 3]
        np.testing.assert_allclose(export.pred_probs(self.path), wanted, rtol=1e-6)
        five = export.pred_probs(self.path, num_classes=5)
        np.testing.assert_allclose(five[1], [0.5, 0.25] + [0.25 / 3] * 3, rtol=1e-6)
        with self.assertRaisesRegex(UserError, "above the largest label of .*, 2. Received: 2"):
            export.pred_probs(self.path, num_classes=2)

    def test_without_cleanlab(self):
        with mock.patch.dict(sys.modules, {"cleanlab": None}):
            with self.assertRaisesRegex(UserError, r"pip install 'ssl_noisy\[cleanlab\]'"):
                export.datalab(self.path)

    def test_datalab_has_the_decision(self):
        self.add_columns(file=list("abcd"))
        for data in (None, {"given_label": [str(NAMES[label]) for label in GIVEN]}):
            lab = export.datalab(self.path, data)
            found = lab.get_issues("training_record")
            self.assertEqual(found["is_training_record_issue"].tolist(), IS_ISSUE.tolist())
            self.assertEqual(found["training_record_score"].tolist(), [0.75, 0.125, 0.5, 1.0])
            self.assertEqual(lab.get_issue_summary("training_record")["num_issues"].tolist(), [1])

    def test_cleanlabs_own_rules_take_the_probabilities(self):
        from cleanlab import filter as cleanlab_filter

        probs = export.pred_probs(self.path)
        lab = export.datalab(self.path)
        lab.find_issues(pred_probs=probs, issue_types={"label": {}})
        issues = lab.get_issues("label")
        self.assertLess(issues["label_score"][1], issues["label_score"][[0, 2]].min())
        found = cleanlab_filter.find_label_issues(
            GIVEN, probs, filter_by="predicted_neq_given", n_jobs=1
        )
        self.assertEqual(found.tolist()[:3], [False, True, False])


if __name__ == "__main__":
    absltest.main()
