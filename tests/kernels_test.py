# SPDX-License-Identifier: Apache-2.0
"""Tests of `benchmarks/kernels.py`, on `kernels_program.hlo`, in the text form of XLA."""

import importlib.util
import pathlib

from absl.testing import absltest

TESTS = pathlib.Path(__file__).resolve().parent
FILE = TESTS.parent / "benchmarks" / "kernels.py"
PROGRAM = (TESTS / "kernels_program.hlo").read_text()


def load():
    spec = importlib.util.spec_from_file_location(
        "kernels", TESTS.parent / "benchmarks" / "kernels.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class KernelsTest(absltest.TestCase):
    def test_every_kernel_by_hand(self):
        views, half = 4 * 3072 * 4, 4 * 3072 * 2  # bytes
        found = [(kind, moved) for kind, _, _, moved in load().kernels(PROGRAM)]
        self.assertEqual(
            found,
            [
                # Of the images 4 rows of one byte a number, then the indices, then the result.
                ("fusion", 4 * 3072 + 4 * 4 + views),
                ("__cudnn$convForward", views + half + 16),
                ("multiply", 3 * half),
                ("multiply", 3 * 2_400_000),
                ("all-reduce", 2 * 2_400_000),
                ("copy", 2 * views),
            ],
        )

    def test_report_by_hand(self):
        report = load().report(PROGRAM, {"conv2d_7"})
        self.assertEqual((report["kernels"], report["small_kernels"]), (6, 4))
        self.assertEqual(
            report["parts"],
            {
                "update losses.l2()": {"kernels": 2, "megabytes": 12.0},
                "layouts copies": {"kernels": 1, "megabytes": 0.1},
                "forward conv2d": {"kernels": 1, "megabytes": 0.1},
                "backward conv2d": {"kernels": 1, "megabytes": 0.1},
                "forward augment.views.weak_view()": {"kernels": 1, "megabytes": 0.1},
            },
        )
        self.assertEqual(list(report["layers"]), ["forward conv2d_7", "backward conv2d_7"])
        self.assertEqual(
            report["collectives"],
            {
                "all-reduce: update losses.l2()": {
                    "count": 1,
                    "bytes": 2_400_000,
                    "largest": 2_400_000,
                }
            },
        )
        # 12,303,960 bytes at 3.35 TB/s.
        self.assertEqual((report["gigabytes"], report["floor_ms"]), (0.01, 0.0))


if __name__ == "__main__":
    absltest.main()
