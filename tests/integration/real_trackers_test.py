# SPDX-License-Identifier: Apache-2.0
"""Real trackers on this machine: one run in each, with every step once, after kills too."""

import csv
import glob
import json
import os
import subprocess
import sys
from unittest import mock

import mlflow
from absl.testing import absltest
from commands import call, read, start, wait_for
from wandb.proto import wandb_internal_pb2

from ssl_noisy.runs import trackers

SMALL = (
    *("--dataset=digits", "--method=supervised", "--num_labels=100", "--network=small_cnn"),
    *("--batch_size=20", "--steps=120", "--steps_per_epoch=20", "--noplots"),
)
LOGGED = (*SMALL, "--logger=mlflow,wandb,trackio")


def accuracies(folder):
    """Returns a list of `(step, test_accuracy)` of metrics.csv."""
    with open(os.path.join(folder, "metrics.csv")) as file:
        return [(int(row["step"]), float(row["test_accuracy"])) for row in csv.DictReader(file)]


def in_mlflow():
    """Returns `(run, accuracies)` of the only run of MLflow."""
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("ssl_noisy").experiment_id])
    history = client.get_metric_history(run.info.run_id, "test_accuracy")
    return run, [(metric.step, metric.value) for metric in history]


def in_wandb():
    """Returns `(ids, accuracies, last summary)` of the offline files of Weights & Biases."""
    ids, found, summary = set(), [], {}
    for path in sorted(glob.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            row = {item.key or item.nested_key[0]: item for item in record.history.item}
            if "test_accuracy" in row:
                found.append(
                    tuple(json.loads(row[k].value_json) for k in ("_step", "test_accuracy"))
                )
            for item in record.summary.update:
                summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
    return ids, found, summary


def wandb_records(path):
    """Yields the records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    with open(path, "rb") as file:
        content = file.read()
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def in_trackio(*what):
    """Returns what Trackio's own command prints about the only run."""
    command = [sys.executable, "-m", "trackio.cli"]

    def ask(*words):
        done = subprocess.run(
            [*command, *words, "--project=ssl_noisy", "--json"], capture_output=True, check=True
        )
        return json.loads(done.stdout)

    (name,) = ask("list", "runs")["runs"]
    return ask("get", *what, f"--run={name}")


class TrackersTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        root = self.create_tempdir().full_path
        before = os.getcwd()
        os.chdir(root)
        self.addCleanup(os.chdir, before)
        environment = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db",
            "TRACKIO_DIR": f"{root}/trackio",
        }
        self.enterContext(mock.patch.dict(os.environ, environment))
        mlflow.set_tracking_uri(environment["MLFLOW_TRACKING_URI"])

    def assert_everywhere_once(self, folder, sent_when_killed):
        """Asserts that each tracker has the rows of metrics.csv, each once, and the result."""
        expected = accuracies(folder)
        self.assertLen(expected, 6)
        result = json.loads(read(folder, "result.json"))
        last = result["test_accuracy"]["last"]

        run, found = in_mlflow()
        self.assertEqual(found, expected)
        self.assertEqual(run.info.status, "FINISHED")
        self.assertEqual(run.data.params["batch_size"], "20")
        self.assertEqual(run.data.params["nesterov"], "True")
        self.assertEqual(run.data.metrics["test_accuracy_last"], last)
        artifacts = mlflow.MlflowClient().download_artifacts(run.info.run_id, "", "downloaded")
        self.assertEqual(read(artifacts, "metrics.csv"), read(folder, "metrics.csv"))
        del result["sha256"]
        self.assertEqual(json.loads(read(artifacts, "result.json")), result)

        ids, found, summary = in_wandb()
        self.assertLen(ids, 1)
        # It writes in the background: the killed process may have lost what it had sent.
        self.assertEqual(found, sorted(set(found)))
        self.assertContainsSubset([row for row in expected if row[0] > sent_when_killed], found)
        self.assertContainsSubset(found, expected)
        self.assertEqual(summary["test_accuracy_last"], last)

        found = in_trackio("metric", "--metric=test_accuracy")["values"]
        self.assertEqual([(row["step"], row["value"]) for row in found], expected)
        run = in_trackio("run")
        self.assertEqual((run["config"]["batch_size"], run["num_logs"]), (20, 7))

    def test_a_killed_run_goes_on_in_the_same_runs_of_its_trackers(self):
        self.assertEqual(call(*SMALL, "--run_dir=plain")[0], 0)
        process = start(*LOGGED, "--run_dir=run")
        wait_for(
            process,
            lambda: os.path.exists("run/metrics.csv") and len(accuracies("run")) >= 2,
        )
        process.kill()
        process.communicate()
        sent = json.loads(read("run", trackers.NAME))["sent"].get("wandb", -1)
        code, _, errors = call(*LOGGED, "--run_dir=run")
        self.assertEqual((code, errors), (0, []))
        for name in ("metrics.csv", "examples.csv", "result.json"):
            self.assertEqual(read("run", name), read("plain", name), name)
        os.remove("run/result.json")  # as the advice about a damaged file says
        self.assertEqual(call(*LOGGED, "--run_dir=run")[0], 0)
        self.assert_everywhere_once("run", sent)

    def test_a_store_that_cannot_be_opened(self):
        mlflow.set_tracking_uri("sqlite:////proc/none/mlflow.db")
        code, _, errors = call(*SMALL, "--logger=mlflow", "--run_dir=run")
        self.assertEqual(code, 2)
        self.assertIn("--logger=mlflow cannot start: ", errors[-1])

    def test_every_tracker_is_an_extra(self):
        for name in trackers.TRACKERS:
            self.assertIn(
                f'\n{name} = ["', read(os.path.dirname(trackers.__file__), "../../pyproject.toml")
            )


if __name__ == "__main__":
    absltest.main()
