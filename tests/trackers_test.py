# SPDX-License-Identifier: Apache-2.0
"""Trackers without their packages: what is sent, what is repeated, and what stays the same."""

import csv
import json
import os
import shlex
import signal
import sys
import types
from unittest import mock

import pytest
from absl.testing import absltest, parameterized
from commands import MistakeCase, call, read

from ssl_noisy.errors import UserError
from ssl_noisy.runs import trackers

SMALL = (
    *("--dataset=digits", "--method=supervised", "--num_labels=100", "--network=small_cnn"),
    *("--batch_size=20", "--steps=6", "--steps_per_epoch=2", "--noplots"),
)


class Notebook(trackers.Tracker):
    """A tracker that keeps what it gets in the list `events` of its library."""

    def open(self):
        if self.library.fails:
            raise OSError("no route\nto host")
        self.library.events.append(("open", self.run_id, self.name, self.sent))
        self.library.flags = self.flags

    def log(self, step, numbers):
        self.need_a_server()
        self.library.events.append(("log", step, numbers))
        if self.library.signum:
            signal.raise_signal(self.library.signum)

    def need_a_server(self):
        if self.library.is_down:
            raise OSError("no route\nto host")

    def finish(self, step, numbers, result, paths):
        self.need_a_server()
        self.library.events.append(("finish", step, numbers, result, paths))

    def close(self, is_finished):
        self.library.events.append(("close", is_finished))


class TrackersCase(MistakeCase):
    def setUp(self):
        super().setUp()
        self.library = types.SimpleNamespace(events=[], fails=False, is_down=False, signum=None)
        kinds = {"notebook": Notebook, "other": Notebook}
        self.enterContext(mock.patch.dict(trackers.TRACKERS, kinds))
        self.enterContext(mock.patch.dict(sys.modules, dict.fromkeys(kinds, self.library)))
        self.folder = os.path.join(self.create_tempdir().full_path, "run")

    def taken(self):
        """Returns the events so far, and forgets them."""
        events, self.library.events = self.library.events, []
        return events


ROWS = [
    {"step": 2, "epoch": 1, "loss": 0.5, "pseudo_label_accuracy": None, "test_accuracy": 0.25},
    {"step": 4, "epoch": 2, "loss": float("nan"), "test_accuracy": 0.75},
]
RESULT = {"test_accuracy": {"last": 0.75, "median_of_last_20": None}}


class TrackersTest(TrackersCase):
    def opened(self, logger="notebook"):
        return trackers.Trackers(logger, self.folder, "a name", {"steps": 4})

    def test_each_row_is_sent_once_with_its_finite_numbers(self):
        one = self.opened()
        one.update(ROWS[:1])
        one.update(ROWS[:1])
        one.close()
        (_, run_id, name, sent), *rest = self.taken()
        self.assertEqual((name, sent, len(run_id)), ("a name", -1, 32))
        first = ("log", 2, {"loss": 0.5, "test_accuracy": 0.25})
        self.assertEqual(rest, [first, ("close", False)])
        two = self.opened("notebook,other")  # another process, and another tracker beside it
        two.update(ROWS)
        second = ("log", 4, {"test_accuracy": 0.75})
        self.assertEqual(
            self.taken(),
            [("open", run_id, name, 2), ("open", run_id, name, -1), second, first, second],
        )

    def test_a_result_is_sent_once(self):
        for expected in (2, 0):
            self.opened("notebook, other,notebook").finish(ROWS, RESULT, ["metrics.csv"])
            finished = [event for event in self.taken() if event[0] == "finish"]
            figures = {"test_accuracy_last": 0.75}
            self.assertEqual(finished, [("finish", 4, figures, RESULT, ["metrics.csv"])] * expected)

    def test_a_failing_tracker_stops_nothing_and_gets_the_rows_later(self):
        one = self.opened()
        self.library.is_down = True
        with self.assertLogs("absl", "WARNING") as logs:
            one.update(ROWS[:1])
        self.assertIn("--logger=notebook failed: no route to host. The next", logs.output[0])
        self.library.is_down = False
        one.update(ROWS)
        self.assertEqual([event[1] for event in self.taken()[1:]], [2, 4])

    def test_a_process_killed_between_rows_repeats_and_loses_none(self):
        one = self.opened()
        log = Notebook.log

        def die(tracker, step, numbers):
            if step == 4:
                raise KeyboardInterrupt
            log(tracker, step, numbers)

        with mock.patch.object(Notebook, "log", die), self.assertRaises(KeyboardInterrupt):
            one.update(ROWS)
        self.assertEqual([event[1] for event in self.taken()[1:]], [2])
        two = self.opened()  # without any close of the first one
        two.update(ROWS)
        opened, sent = self.taken()
        self.assertEqual((opened[3], sent[1]), (2, 4))

    def test_the_first_tracker_is_closed_if_the_second_cannot_start(self):
        class Broken(Notebook):
            def open(self):
                raise self.library.error

        for error in (OSError("no disk"), KeyboardInterrupt()):
            self.library.error = error
            expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
            with mock.patch.dict(trackers.TRACKERS, other=Broken), self.assertRaises(expected):
                self.opened("notebook,other")
            self.assertEqual([event[0] for event in self.taken()], ["open", "close"])

    @parameterized.parameters("log", "finish")
    def test_a_run_is_finished_where_everything_has_arrived(self, name):
        one = self.opened("notebook,other")
        first = one._opened["notebook"]
        setattr(first, name, mock.Mock(side_effect=OSError("full")))
        with self.assertLogs("absl", "WARNING") as logs:
            one.finish(ROWS, RESULT, [])
        self.assertLen(logs.output, 1)
        closed = [event[1] for event in self.taken() if event[0] == "close"]
        self.assertEqual(closed, [False, True])
        self.assertEqual(trackers.lacking("notebook,other", self.folder), ["notebook"])
        self.opened().finish(ROWS, RESULT, [])
        self.assertEqual(self.taken()[-1], ("close", True))
        self.assertEqual(trackers.lacking("notebook,other", self.folder), [])

    def test_a_tracker_that_cannot_start_is_an_error(self):
        self.library.fails = True
        with self.assertRaisesRegex(UserError, "--logger=notebook cannot start: no route to host"):
            self.opened()

    def test_a_damaged_file_is_an_error(self):
        os.mkdir(self.folder)
        for content in ("", "[]", '{"id": 1}', '{"id": "a", "sent": {"notebook": "x"}}'):
            with open(os.path.join(self.folder, trackers.NAME), "w") as file:
                file.write(content)
            with self.assertRaisesRegex(UserError, "Delete it to track the run as a new one"):
                self.opened()

    def test_without_trackers_nothing_is_written(self):
        nothing = self.opened(None)
        nothing.update(ROWS)
        nothing.finish(ROWS, RESULT, [])
        self.assertFalse(os.path.exists(self.folder))


class RunTest(TrackersCase):
    @pytest.mark.slow
    def test_a_run_is_the_same_with_and_without_a_tracker(self):
        baseline = "--baseline=gce"
        plain = os.path.join(self.create_tempdir().full_path, "plain")
        self.assertEqual(call(*SMALL, baseline, f"--run_dir={plain}")[0], 0)
        run = (*SMALL, baseline, f"--run_dir={self.folder}")
        self.assertEqual(call(*run, "--logger=notebook")[0], 0)
        for name in ("metrics.csv", "examples.csv", "result.json", "baseline/metrics.csv"):
            self.assertEqual(read(self.folder, name), read(plain, name), name)
        events = self.taken()
        opened = [event[2] for event in events if event[0] == "open"]
        self.assertEqual(opened, ["run/baseline", "run"])
        *_, finished, closed = events
        self.assertEqual((finished[1], closed), (6, ("close", True)))
        with open(os.path.join(self.folder, "metrics.csv")) as file:
            rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
        logged = [(event[1], event[2]["loss"]) for event in events if event[0] == "log"]
        self.assertEqual(logged[3:], rows)
        result = json.loads(read(self.folder, "result.json"))
        del result["sha256"]
        self.assertEqual(finished[3], result)
        names = [os.path.basename(path) for path in finished[4]]
        self.assertEqual(names, ["examples.csv", "flags.cfg", "metrics.csv"])
        self.assertEqual(self.library.flags["steps"], 6)
        # Another tracker does not make another run; it gets all rows of the one that there is.
        self.assertEqual(call(*run, "--logger=other")[0], 0)
        self.assertEqual([e[1] for e in self.taken() if e[0] == "log"], [2, 4, 6] * 2)
        self.assertEqual(read(self.folder, "result.json"), read(plain, "result.json"))
        os.remove(os.path.join(self.folder, "result.json"))
        self.assertEqual(call(*run, "--logger=other")[0], 0)
        self.assertEqual([e[0] for e in self.taken()], ["open", "close"])

    def test_what_a_tracker_missed_is_sent_by_the_command_in_the_warning(self):
        self.library.is_down = True
        run = (*SMALL, "--baseline=gce", "--logger=notebook", f"--run_dir={self.folder}")
        with self.assertLogs("absl", "WARNING") as logs:
            self.assertEqual(call(*run)[0], 0)
        closed = [event for event in self.taken() if event[0] == "close"]
        self.assertEqual(closed, [("close", False)] * 2)
        result = read(self.folder, "result.json")
        self.library.is_down = False
        words = shlex.split(logs.output[-1].partition("python -m ssl_noisy.train ")[2])
        self.assertEqual(call(*words)[0], 0)
        events = self.taken()
        shown = [event[2] if event[0] == "open" else event[1] for event in events]
        self.assertEqual(shown, ["run/baseline", 2, 4, 6, 6, True, "run", 2, 4, 6, 6, True], events)
        self.assertEqual(read(self.folder, "result.json"), result)
        for arguments in (words, run):
            self.assertEqual(call(*arguments)[0], 0)
            self.assertEqual(self.taken(), [])

    def test_a_stopped_run_closes_its_trackers(self):
        self.library.signum = signal.SIGTERM
        code, _, _ = call(*SMALL, "--logger=notebook", f"--run_dir={self.folder}")
        self.assertEqual(code, 128 + signal.SIGTERM)
        events = self.taken()
        self.assertEqual([event[0] for event in events], ["open", "log", "close"])
        self.assertEqual(events[-1], ("close", False))

    @pytest.mark.slow
    def test_the_passes_of_aum_are_not_tracked(self):
        arguments = (*SMALL, "--remove_labels=aum", "--pass_batch_size=20", "--logger=notebook")
        self.assertEqual(call(*arguments, f"--run_dir={self.folder}")[0], 0)
        self.assertEqual([e[2] for e in self.taken() if e[0] == "open"], ["run"])


class MistakeTest(TrackersCase):
    @parameterized.parameters("tensorboard", "notebook,", "notebook,,other", "Notebook")
    def test_an_unknown_tracker(self, logger):
        error = self.refuse(*SMALL, f"--logger={logger}")
        self.assertIn("--logger must be one or more of mlflow, wandb, trackio", error)
        self.assertIn(f"Received: --logger={logger}", error)

    @parameterized.parameters("mlflow", "wandb", "trackio")
    def test_a_missing_package(self, name):
        with mock.patch.dict(sys.modules, {name: None}):  # which makes its import fail
            error = self.refuse(*SMALL, f"--logger=notebook,{name}")
        self.assertIn(f"--logger={name} needs another package", error)
        self.assertIn(f"pip install 'ssl_noisy[{name}]'", error)


if __name__ == "__main__":
    absltest.main()
