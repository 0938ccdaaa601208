# SPDX-License-Identifier: Apache-2.0
import dataclasses

from absl.testing import absltest

from ssl_noisy.runs import removal
from ssl_noisy.settings import Settings


class LengthTest(absltest.TestCase):
    def test_the_length_of_a_pass(self):
        aum = {"batch_size": 100, "pass_batch_size": 25, "pass_share": 0.5}
        made = Settings(method="aum", steps=400, steps_per_epoch=100, method_arguments=aum)
        one = removal.pass_settings(made)
        self.assertEqual((one.method, one.schedule, one.remover), ("supervised", "constant", None))
        # Half of 400 steps of 100, in steps of 25, with as many evaluations per epoch.
        self.assertEqual((one.steps, one.steps_per_epoch), (800, 400))
        self.assertEqual(one.method_arguments["batch_size"], 25)
        self.assertTrue(one.method_arguments["record_examples"])
        several = removal.pass_settings(dataclasses.replace(made, steps_per_execution=50))
        self.assertEqual((several.steps % 50, several.steps_per_epoch % 50), (0, 0))

    def test_a_training_on_fewer_labels_keeps_its_epochs(self):
        made = Settings(method="aum", steps=430, steps_per_epoch=100)
        for fraction, expected in (
            (1.0, (430, 100)),
            (0.6, (258, 60)),  # 4 epochs of 60 and a last one of 18
            (0.595, (258, 60)),
            (0.594, (254, 59)),
            (0.001, (5, 1)),  # each epoch keeps a step
        ):
            fewer = removal.shortened(made, fraction)
            self.assertEqual((fewer.steps, fewer.steps_per_epoch), expected, fraction)
        whole = Settings(method="aum", steps=400, steps_per_epoch=100, steps_per_execution=20)
        fewer = removal.shortened(whole, 0.49)
        self.assertEqual((fewer.steps, fewer.steps_per_epoch), (160, 40))
        self.assertEqual((whole.steps, whole.steps_per_epoch), (400, 100))


if __name__ == "__main__":
    absltest.main()
