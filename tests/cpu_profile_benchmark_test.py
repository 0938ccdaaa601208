# SPDX-License-Identifier: Apache-2.0
"""Tests of `benchmarks/cpu_profile.py`."""

import contextlib
import importlib.util
import io
import json
import pathlib

import pytest
from absl.testing import absltest

FILE = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "cpu_profile.py"


def load():
    spec = importlib.util.spec_from_file_location("cpu_profile", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CPUProfileTest(absltest.TestCase):
    def test_operations_of_all_threads_by_hand(self):
        profile = load()
        space = profile.xplane_pb2.XSpace()
        plane = space.planes.add(name="/host:CPU")
        names = ("net/conv_1/Conv2D:Conv2D", "net/conv_2/Conv2D:Conv2D", "add:AddV2", "Run")
        for number, name in enumerate(names, 1):
            plane.event_metadata[number].name = name
        spent = (((1, 2), (2, 3), (4, 50)), ((3, 7), (1, 1)))  # of two threads, milliseconds
        for thread in spent:
            line = plane.lines.add()
            for number, milliseconds in thread:
                line.events.add(metadata_id=number, duration_ps=int(milliseconds * 1e9))
        milliseconds, calls = profile.operations(space.SerializeToString())
        self.assertEqual(milliseconds, {"Conv2D": 6, "AddV2": 7})
        self.assertEqual(calls, {"Conv2D": 3, "AddV2": 1})

    @pytest.mark.slow
    def test_a_step_has_its_operations(self):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            load().main(
                ["cpu_profile", "--dataset=digits", "--num_labels=20", "--network=small_cnn"]
                + ["--batch_size=8", "--unlabeled_ratio=2"]
            )
        found = json.loads(printed.getvalue().splitlines()[-1])
        longest = found["operations"]
        self.assertEqual(sum("Conv2D" in kind for kind in longest), 3)  # and both gradients
        # Three convolutions of labeled, weak and strong views; only the weak ones are not trained.
        forward = next(calls for kind, (_, calls) in longest.items() if kind.endswith("Conv2D"))
        self.assertEqual(forward, 9)
        self.assertGreater(found["milliseconds_per_step"], 0)


if __name__ == "__main__":
    absltest.main()
