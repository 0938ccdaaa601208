# SPDX-License-Identifier: Apache-2.0
import io
from unittest import mock

from absl.testing import absltest

from ssl_noisy.runs import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ProgressTest(absltest.TestCase):
    def test_other_streams_get_a_line_per_epoch(self):
        stream = io.StringIO()
        shown = progress.Progress(100, "fixmatch", stream)
        self.assertFalse(shown.is_due())
        shown.show(10, {"loss": 1.5})
        shown.measured({"test_accuracy": 0.875})
        shown.show(50, {"supervised_loss": 2.0, "loss": 1.25, "mask_rate": 0.5}, is_final=True)
        lines = stream.getvalue().splitlines()
        self.assertLen(lines, 1)
        self.assertRegex(
            lines[0],
            r"^fixmatch 50/100  \d+\.\d steps/s  0:00:\d\d left  test_accuracy 87.50%  "
            r"loss 1.25  mask_rate 0.5  supervised_loss 2$",
        )

    def test_the_accuracy_has_its_own_name(self):
        stream = io.StringIO()
        shown = progress.Progress(100, "scan", stream)
        shown.measured({"test_cluster_accuracy": 0.5, "test_nmi": 0.75})
        shown.show(50, {}, is_final=True)
        shown.measured({"step": 60})
        shown.show(60, {}, is_final=True)
        first, second = stream.getvalue().splitlines()
        self.assertEndsWith(first, "  test_cluster_accuracy 50.00%")
        self.assertNotIn("accuracy", second)

    def test_a_terminal_gets_one_line_that_updates_in_place(self):
        stream = Terminal()
        shown = progress.Progress(100, "fixmatch", stream, interval=0.0)
        self.assertTrue(shown.is_due())
        shown.show(1, {"loss": 2.0})
        shown.show(2, {"loss": 1.0}, is_final=True)
        self.assertEqual(stream.getvalue().count("\n"), 1)
        self.assertEqual(stream.getvalue().count("\r"), 2)

    def test_the_time_left_in_days(self):
        stream = io.StringIO()
        shown = progress.Progress(1_000_000, "fixmatch", stream)
        with mock.patch.object(progress.time, "monotonic", side_effect=[0.0, 1.0]):
            shown.show(1, {})
            shown.show(11, {}, is_final=True)
        self.assertIn("10.0 steps/s  1 day, 3:46:38 left", stream.getvalue())


if __name__ == "__main__":
    absltest.main()
