# SPDX-License-Identifier: Apache-2.0
import numpy as np
from absl.testing import absltest

from ssl_noisy import devices
from ssl_noisy.batches import IndexBatches, Partners, in_stages, stage_of

POOLS = {"labeled": np.array([3, 5, 8]), "unlabeled": np.arange(10)}
SIZES = {"labeled": 4, "unlabeled": 6}


def make(**kwargs):
    return IndexBatches(POOLS, SIZES, **{"seed": 7, **kwargs})


class IndexBatchesTest(absltest.TestCase):
    def test_every_pass_holds_each_example_once(self):
        batches = make()
        for name, pool in POOLS.items():
            drawn = np.concatenate([batches[i][0][name] for i in range(30)])
            for number in range(len(drawn) // len(pool)):
                one_pass = drawn[number * len(pool) : (number + 1) * len(pool)]
                np.testing.assert_array_equal(np.sort(one_pass), pool)

    def test_passes_have_different_orders(self):
        drawn = np.concatenate([make()[i][0]["unlabeled"] for i in range(10)]).reshape(6, 10)
        self.assertLen({tuple(row) for row in drawn}, 6)

    def test_a_batch_depends_on_seed_and_step_alone(self):
        read_in_order = make()
        expected = [read_in_order[i][0] for i in range(12)]
        for step in (11, 4, 0):
            for name in POOLS:
                np.testing.assert_array_equal(make()[step][0][name], expected[step][name])
                np.testing.assert_array_equal(make(start=step)[0][0][name], expected[step][name])

    def test_seeds_and_streams_differ(self):
        batches = IndexBatches({"a": np.arange(50), "b": np.arange(50)}, {"a": 50, "b": 50}, 1)
        self.assertFalse(np.array_equal(batches[0][0]["a"], batches[0][0]["b"]))
        self.assertFalse(np.array_equal(make()[0][0]["unlabeled"], make(seed=8)[0][0]["unlabeled"]))

    def test_true_labels_are_those_of_the_batch(self):
        true_labels = np.arange(10) * 11
        x, y = make(true_labels=true_labels)[2]
        np.testing.assert_array_equal(y["unlabeled"], x["unlabeled"] * 11)

    def test_images_are_those_of_the_batch(self):
        images = np.arange(10, dtype="uint8").reshape(10, 1, 1, 1)
        x, y = make(images=images, true_labels=np.arange(10))[3]
        for name, size in SIZES.items():
            self.assertEqual(x[f"{name}_images"].shape, (size, 1, 1, 1))
            np.testing.assert_array_equal(x[f"{name}_images"].ravel(), x[name])
        self.assertEqual(set(y), set(SIZES))
        self.assertEqual(sorted(x)[0], sorted(SIZES)[0])  # see `image_key`

    def test_batches_that_grow_take_each_example_once_a_pass(self):
        grown = {"labeled": 4, "unlabeled": 13}
        stages = in_stages({0: SIZES, 3: SIZES | {"unlabeled": 9}, 5: grown})
        # Unlabeled: three steps of 6, two of 9, then 13 in each.
        self.assertEqual([stage.drawn["unlabeled"] for stage in stages], [0, 18, 36])
        self.assertEqual(stages[2].drawn_at(7, "unlabeled"), 62)
        self.assertEqual([stage_of(step, stages).first_step for step in (2, 3, 4, 9)], [0, 3, 3, 5])
        batches = IndexBatches(POOLS, stages, seed=7)
        drawn = [batches[step][0] for step in range(8)]
        self.assertEqual([len(x["unlabeled"]) for x in drawn], [6, 6, 6, 9, 9, 13, 13, 13])
        # The same examples in the same order as in batches of one size, cut at other places.
        for name, count in (("labeled", 32), ("unlabeled", 75)):
            at_once = np.concatenate([make()[step][0][name] for step in range(20)])[:count]
            np.testing.assert_array_equal(np.concatenate([x[name] for x in drawn]), at_once)
        resumed = IndexBatches(POOLS, stages, seed=7, start=6)
        np.testing.assert_array_equal(resumed[1][0]["unlabeled"], drawn[7]["unlabeled"])

    def test_partners_are_of_the_row_of_their_example(self):
        table = np.array([[10 * row + choice for choice in range(3)] for row in range(10)])
        sizes = SIZES | {"partner": 6}
        batches = IndexBatches(
            POOLS, sizes, 7, partners={"partner": Partners("unlabeled", table)}, start=2
        )
        drawn = [batches[step][0] for step in range(200)]
        for x in drawn:
            np.testing.assert_array_equal(x["partner"] // 10, x["unlabeled"])
            self.assertEqual(x["partner"].dtype, np.int32)
        # Others are as without partners, and each of the three is as likely: 400 +- 16.
        for name in POOLS:
            np.testing.assert_array_equal(drawn[3][name], make()[5][0][name])
        counts = np.bincount(np.concatenate([x["partner"] for x in drawn]) % 10)
        np.testing.assert_allclose(counts, 400, atol=70)
        # Of a process, the rows of its examples.
        with absltest.mock.patch.object(devices, "part", lambda rows: np.split(rows, 2)[1]):
            part = batches[9][0]
        np.testing.assert_array_equal(part["partner"], drawn[9]["partner"][3:])
        np.testing.assert_array_equal(part["unlabeled"], drawn[9]["unlabeled"][3:])
        with self.assertRaisesRegex(ValueError, "of 'partner' must be that of 'unlabeled', 6. Rec"):
            IndexBatches(
                POOLS,
                sizes | {"partner": 5},
                partners={"partner": Partners("unlabeled", table)},
            )

    def test_it_is_endless_for_keras(self):
        self.assertIsNone(make().num_batches)

    def test_mistakes_are_named(self):
        with self.assertRaisesRegex(ValueError, "no examples to draw for 'labeled'"):
            IndexBatches({"labeled": []}, {"labeled": 2})
        with self.assertRaisesRegex(ValueError, "'labeled' must be positive. Received: 0"):
            IndexBatches({"labeled": [1]}, {"labeled": 0})


if __name__ == "__main__":
    absltest.main()
