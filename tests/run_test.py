# SPDX-License-Identifier: Apache-2.0
"""`run` called from Python: data that is loaded once and shared by several runs."""

import dataclasses
import io
import os
from unittest import mock

import pytest
from absl.testing import absltest
from commands import read

from ssl_noisy.data import sources
from ssl_noisy.errors import UserError
from ssl_noisy.runs import labeling
from ssl_noisy.runs.run import run
from ssl_noisy.settings import Settings

SMALL = Settings(
    method="supervised",
    noise="symmetric:0.4",
    num_labels=100,
    network="small_cnn",
    steps=6,
    steps_per_epoch=3,
    plots=False,
    method_arguments={"batch_size": 20},
)


class SharedDatasetTest(absltest.TestCase):
    def run_in(self, name, **kwargs):
        run_dir = os.path.join(self.create_tempdir().full_path, name)
        return run_dir, run(dataclasses.replace(SMALL, run_dir=run_dir), io.StringIO(), **kwargs)

    @pytest.mark.slow
    def test_the_results_are_those_of_runs_that_load_it(self):
        loaded, expected = self.run_in("loaded")
        dataset = labeling.load_dataset(SMALL)
        for field in dataclasses.fields(dataset):
            value = getattr(dataset, field.name)
            if hasattr(value, "flags"):
                value.flags.writeable = False  # a run that changed it would fail
        with mock.patch.object(sources, "load", side_effect=AssertionError):
            for name in ("first", "second"):
                shared, result = self.run_in(name, dataset=dataset)
                self.assertEqual(result, expected)
                for file in ("labels.json", "metrics.csv", "examples.csv", "result.json"):
                    self.assertEqual(read(shared, file), read(loaded, file), file)

    def test_it_must_be_the_dataset_of_the_settings(self):
        dataset = dataclasses.replace(labeling.load_dataset(SMALL), name="cifar10")
        run_dir = os.path.join(self.create_tempdir().full_path, "run")
        with self.assertRaisesRegex(UserError, "`dataset` must be 'digits'.* Received: 'cifar10'"):
            run(dataclasses.replace(SMALL, run_dir=run_dir), dataset=dataset)
        self.assertFalse(os.path.exists(run_dir))
        for name, settings in (("cifar10", "cifar10:3.0.2"), ("npz:a:b.npz", "npz:a:b.npz")):
            labeling.check_dataset(
                Settings(dataset=settings), dataclasses.replace(dataset, name=name)
            )


if __name__ == "__main__":
    absltest.main()
