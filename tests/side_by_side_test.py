# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in turn: who runs when, what is compared, and what a program may print."""

import json
import os
import shlex
import subprocess
import sys

from absl.testing import absltest, parameterized

from ssl_noisy import side_by_side
from ssl_noisy.errors import UserError
from ssl_noisy.settings import Settings

# Appends its name to a file and prints the time of a step, `first` when it is first, then half.
PROGRAM = """
import json, pathlib, sys
name, first, log = sys.argv[1], float(sys.argv[2]), pathlib.Path(sys.argv[3])
text = log.read_text() if log.exists() else ""
log.write_text(text + name)
print("warming up")
print(json.dumps({"seconds_per_step": first / (1 + text.count(name))}))
"""


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


class CompareTest(parameterized.TestCase):
    def test_in_turn_and_pair_by_pair(self):
        log = self.create_tempdir().full_path + "/the log"
        ours, theirs = python(PROGRAM, "A", 6, log), python(PROGRAM, "B", 8, log)
        told = []
        found = side_by_side.compare(ours, shlex.join(theirs), 3, told.append)
        with open(log) as file:
            self.assertEqual(file.read(), "ABABAB")
        self.assertEqual([one["seconds_per_step"] for one in found["ours"]], [6, 3, 2])
        self.assertEqual([one["seconds_per_step"] for one in found["theirs"]], [8, 4, 8 / 3])
        self.assertEqual((found["ratios"], found["ratio"]), ([0.75] * 3, 0.75))
        self.assertEqual(found["command"], shlex.join(theirs))
        self.assertLen(told, 3)
        self.assertEqual(told[1], "Pair 2 of 3: 3 s and 4 s a step, 0.750")
        json.dumps(found, allow_nan=False)

    def test_the_ratio_is_the_median_of_pairs(self):
        # Ratios of 6/6, 3/6, 2/6: their median is 1/2, that of the times 3/6 as well, but their
        # mean is 0.611. With two pairs the median is 3/4.
        log = self.create_tempdir().full_path + "/log"
        theirs = shlex.join(python("print('{\"seconds_per_step\": 6}')"))
        found = side_by_side.compare(python(PROGRAM, "A", 6, log), theirs, 3, lambda line: None)
        self.assertEqual(found["ratios"], [1, 0.5, 0.3333])
        self.assertEqual(found["ratio"], 0.5)

    @parameterized.named_parameters(
        ("no_such_program", "/no/such/program", "No such file or directory: /no/such/program"),
        ("a_quote_is_open", "a 'b", "--compare is no command line: No closing quotation"),
        ("empty", " ", "--compare must be the command line of a program"),
    )
    def test_a_command_that_cannot_start(self, theirs, message):
        ours = python("print('{\"seconds_per_step\": 1}')")
        with self.assertRaisesRegex(UserError, message):
            side_by_side.compare(ours, theirs, 1, print)

    @parameterized.named_parameters(
        ("nothing", "", "Received: no output"),
        ("text", "print('{}'); print('done')", "Received: done"),
        ("other_json", "print('{\"seconds\": 1}')", 'Received: {"seconds": 1}'),
        ("a_list", "print('[1]')", r"Received: \[1\]"),
        ("not_a_number", 'print(\'{"seconds_per_step": "1"}\')', "a positive number"),
        ("nan", "print('{\"seconds_per_step\": NaN}')", "a positive number"),
        ("zero", "print('{\"seconds_per_step\": 0}')", "a positive number"),
        ("failure", "print('{\"seconds_per_step\": 1}'); raise SystemExit('no\\nluck')", "1, luck"),
    )
    def test_a_program_without_a_result(self, code, message):
        with self.assertRaisesRegex(UserError, f"^It fails: .*{message}"):
            side_by_side.run("It fails", python(code))

    def test_the_environment_of_the_process(self):
        code = "import os; print('{\"seconds_per_step\": %s}' % os.environ['SECONDS_A_STEP'])"
        environment = {**os.environ, "SECONDS_A_STEP": "7"}
        found = side_by_side.run("It fails", python(code), environment)
        self.assertEqual(found["seconds_per_step"], 7)


class CommandTest(absltest.TestCase):
    def test_this_benchmark_beside_another(self):
        settings = Settings(
            network="small_cnn", method_arguments={"batch_size": 4, "unlabeled_ratio": 2}
        )
        theirs = shlex.join(python("print('{\"seconds_per_step\": 1e-9}')"))
        words = [*side_by_side.command(settings, 2, 1), f"--compare={theirs}", "--pairs=1"]
        process = subprocess.run(words, capture_output=True, text=True)
        self.assertEqual(process.returncode, 0, process.stderr)
        (line,) = process.stdout.splitlines()
        found = json.loads(line)
        (ours,) = found["ours"]
        self.assertIn("--batch_size=4", ours["flags"])
        self.assertEqual(ours["steps_timed"], 2)
        self.assertGreater(ours["seconds_per_evaluation"], 0)
        self.assertAlmostEqual(found["ratio"] / (ours["seconds_per_step"] / 1e-9), 1, places=3)
        self.assertIn("Pair 1 of 1", process.stderr)


if __name__ == "__main__":
    absltest.main()
