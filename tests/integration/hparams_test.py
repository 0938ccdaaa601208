# SPDX-License-Identifier: Apache-2.0
"""TensorBoard itself finds the flags and the accuracies of a sweep."""

import os

from absl.testing import absltest
from tensorboard.backend.event_processing import event_multiplexer
from tensorboard.plugins.hparams import metadata

from ssl_noisy.runs.metrics import TensorBoard
from ssl_noisy.sweeps import hparams


class HParamsTest(absltest.TestCase):
    def test_tensorboard_finds_flags_beside_the_scalars(self):
        sweep_dir = self.create_tempdir().full_path
        flags = {"method": "uda", "num_labels": 40, "learning_rate": 0.5, "noise": None}
        for seed in (0, 1):
            run_dir = os.path.join(sweep_dir, "runs", f"seed-{seed}")
            os.makedirs(run_dir)
            scalars = TensorBoard(run_dir)
            for step in (20, 40):
                scalars.write({"step": step, "test_accuracy": 0.01 * step})
            scalars.close()
            for _ in range(2):  # the second call has nothing to do
                hparams.write(run_dir, {**flags, "seed": seed})
        found = event_multiplexer.EventMultiplexer().AddRunsFromDirectory(sweep_dir)
        found.Reload()
        for seed in (0, 1):
            run = os.path.join("runs", f"seed-{seed}", "tensorboard")
            content = found.SummaryMetadata(run, metadata.SESSION_START_INFO_TAG)
            start = metadata.parse_session_start_info_plugin_data(content.plugin_data.content)
            values = {name: v.WhichOneof("kind") for name, v in start.hparams.items()}
            self.assertEqual(start.hparams["method"].string_value, "uda")
            self.assertEqual(start.hparams["seed"].number_value, seed)
            self.assertEqual(start.hparams["noise"].string_value, "unset")
            self.assertEqual(values["learning_rate"], "number_value")
            content = found.SummaryMetadata(run, metadata.EXPERIMENT_TAG)
            experiment = metadata.parse_experiment_plugin_data(content.plugin_data.content)
            self.assertEqual([m.name.tag for m in experiment.metric_infos], [hparams.METRIC])
            accuracies = [(e.step, round(e.value, 6)) for e in found.Scalars(run, hparams.METRIC)]
            self.assertEqual(accuracies, [(20, 0.2), (40, 0.4)])


if __name__ == "__main__":
    absltest.main()
