# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import json
from unittest import mock

import pytest
from absl.testing import absltest

from ssl_noisy import benchmark
from ssl_noisy.errors import UserError
from ssl_noisy.settings import Settings

SMALL = {"num_labels": 20, "network": "small_cnn"}


class BenchmarkTest(absltest.TestCase):
    def test_one_json_line_about_the_step(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            settings = Settings(**SMALL, method_arguments={"batch_size": 4, "unlabeled_ratio": 2})
            benchmark.main(benchmark.Benchmark(settings, timed_steps=6))
        (line,) = out.getvalue().splitlines()
        report = json.loads(line)
        low, high = report["quartiles"]
        self.assertLessEqual(low, report["seconds_per_step"])
        self.assertLessEqual(report["seconds_per_step"], high)
        self.assertEqual(report["steps_timed"], 6)
        # 4 labeled images and two views of 8 unlabeled ones.
        per_second = 20 / report["seconds_per_step"]
        self.assertAlmostEqual(report["images_per_second"] / per_second, 1, places=2)
        self.assertGreater(report["seconds_to_first_step"], 0)
        self.assertIn("--batch_size=4", report["flags"])
        self.assertGreater(report["operations_per_step"], 0)
        self.assertNotIn("seconds_per_evaluation", report)

    @pytest.mark.slow
    def test_several_steps_per_execution_are_timed_by_the_step(self):
        settings = Settings(**SMALL, steps=6, steps_per_execution=3)
        self.assertEqual(benchmark.measure(settings, 6)["steps_timed"], 6)

    def test_the_warm_up_is_left_out(self):
        class Learner:
            jit_compile = False
            resident = mock.Mock(place="device")

            def streams(self):
                return {"labeled": 10}

        seconds = [100.0] * benchmark.WARM_UP + [1.0, 2.0, 3.0, 4.0]
        report = benchmark.report(Settings(**SMALL), Learner(), seconds)
        self.assertEqual(report["seconds_per_step"], 2.5)
        self.assertEqual(report["images_per_second"], 4.0)

    def test_a_mistake_is_a_user_error(self):
        with self.assertRaises(UserError):
            benchmark.measure(Settings(num_labels=20, network="wrn_27_2"), 6)


if __name__ == "__main__":
    absltest.main()
