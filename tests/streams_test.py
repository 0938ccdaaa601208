# SPDX-License-Identifier: Apache-2.0
import io
import os
import sys
from unittest import mock

from absl.testing import absltest

from ssl_noisy import streams
from ssl_noisy.runs import progress


class OutputTest(absltest.TestCase):
    def test_a_reader_that_exits_ends_the_output_silently(self):
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            output = streams.Output(stream)
            output.write("heard\n")
            output.flush()
            self.assertEqual(os.read(reader, 100), b"heard\n")
            os.close(reader)
            with self.assertNoLogs(level="WARNING"):
                for _ in range(3):
                    output.write("lost\n")
                    output.flush()
            # Nor does the flush of the stream itself fail, which Python does at exit.
            stream.flush()

    def test_a_full_disk_ends_the_output_with_one_warning(self):
        with open("/dev/full", "w") as stream, self.assertLogs(level="WARNING") as logs:
            shown = progress.Progress(100, "fixmatch", stream)
            for step in (10, 20):
                shown.show(step, {}, is_final=True)
            stream.flush()
        self.assertLen(logs.output, 1)
        self.assertIn("No space left on device", logs.output[0])

    def test_a_closed_standard_output(self):
        with mock.patch.object(sys, "stdout", None):
            shown = progress.Progress(100, "fixmatch")
            shown.note("nobody reads this")
            self.assertFalse(shown.is_live)

    def test_it_delegates_to_the_stream(self):
        stream = io.StringIO()
        stream.isatty = lambda: True
        output = streams.Output(stream)
        print("text", file=output)
        self.assertEqual(stream.getvalue(), "text\n")
        self.assertTrue(output.isatty())


if __name__ == "__main__":
    absltest.main()
