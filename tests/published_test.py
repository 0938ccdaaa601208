# SPDX-License-Identifier: Apache-2.0
"""Published figures in the picture of a sweep: only those of recipes that its runs follow."""

import os
from unittest import mock

from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import recipes, sweep
from ssl_noisy.sweeps import plots, published, report

TORCHSSL = recipes.folder() / "fixmatch_cifar10_torchssl.cfg"


def settings_of(*arguments):
    """Returns the `Settings` of the runs of a sweep."""
    values = flags.FlagValues()
    sweep.define_flags(values)
    arguments = ["sweep", "--sweep_dir=unused", "--over=seed=5", *arguments]
    return [run.settings for run in sweep.read_flags(arguments, values).runs]


class PublishedTest(parameterized.TestCase):
    def test_the_median_of_the_last_20_comes_before_the_best(self):
        (settings,) = settings_of(f"--flagfile={TORCHSSL}", "--num_labels=1000")
        expected = [(40, 7.99, False), (250, 5.12, False), (4000, 4.46, False)]
        self.assertEqual(published.marks(settings), [published.Mark(*x) for x in expected])

    def test_the_best_on_the_test_set_is_an_oracle(self):
        path = recipes.folder() / "remixmatch_cifar100_torchssl.cfg"
        (settings,) = settings_of(f"--flagfile={path}")
        expected = [(400, 42.75, True), (2500, 26.03, True), (10000, 20.02, True)]
        self.assertEqual(published.marks(settings), [published.Mark(*x) for x in expected])

    @parameterized.parameters("--steps=300", "--network=small_cnn", "--confidence_threshold=0.9")
    def test_another_training_has_no_published_figure(self, argument):
        (settings,) = settings_of(f"--flagfile={TORCHSSL}", argument)
        self.assertEqual(published.marks(settings), [])

    def test_each_curve_of_a_sweep_has_the_figures_of_its_own_recipe(self):
        folder = self.create_tempdir().full_path
        values = flags.FlagValues()
        sweep.define_flags(values)
        arguments = ["sweep", f"--sweep_dir={folder}", f"--flagfile={TORCHSSL}"]
        arguments += ["--over=num_labels=40,250", "--over=confidence_threshold=0.95,0.5"]
        request = sweep.read_flags([*arguments, "--over=seed=1:3"], values)
        made = report.Report(folder, request.swept, request.runs)
        result = {
            "test_accuracy": {"last": 0.9},
            "validation_accuracy": None,
            "labels_sha256": "a",
            "num_labels": None,
        }

        def result_of(name):
            return result | {"num_labels": 40 if "num_labels-40" in name else 250}

        state = {run.name: {"status": "finished", "seconds": 1.0} for run in request.runs}
        with (
            mock.patch.object(report.Report, "_result_of", lambda self, name: result_of(name)),
            mock.patch.object(report.Report, "_describe_runs"),
            mock.patch.object(plots, "budget_curve", wraps=plots.budget_curve) as drawn,
        ):
            made.write(state, is_last=True)
        curves, _, marks = drawn.call_args.args
        self.assertLen(curves, 2)
        with_figures = [name for name, found in marks.items() if found]
        self.assertLen(with_figures, 1)
        self.assertIn("0.95", with_figures[0])
        self.assertGreater(os.path.getsize(os.path.join(folder, "budget_curve.png")), 1000)


if __name__ == "__main__":
    absltest.main()
