# SPDX-License-Identifier: Apache-2.0
"""Runs on several devices, beside the same runs on one: JAX sees four in tests (`conftest.py`)."""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized
from commands import ROOT, MistakeCase, call, read, start, wait_for

from ssl_noisy import devices, machine, settings
from ssl_noisy.runs import checkpoint, evaluation, labeling

SMALL = ("--dataset=digits", "--num_labels=40", "--network=small_cnn", "--method=elr", "--noplots")
SMALL += ("--num_devices=2", "--checkpoint_seconds=0", "--steps=60", "--steps_per_epoch=30")


class DevicesMistakeTest(MistakeCase):
    def test_a_batch_that_cannot_be_divided(self):
        for arguments, message in (
            (["--batch_size=64"], "--batch_size=64. Received: --num_devices=3. Use "),
            (["--batch_size=64"], "Use --batch_size=63 or --batch_size=66."),
            (["--batch_size=2"], "Use --batch_size=3."),
            (["--method=arazo", "--batch_size=3", "--unlabeled_batch_size=7"], "_size=6 or --unla"),
            (["--method=aum", "--batch_size=3", "--pass_batch_size=8"], "--pass_batch_size=9"),
        ):
            self.assertIn(message, self.refuse("--num_devices=3", *arguments))


class OneDeviceTest(MistakeCase):
    def test_more_devices_than_there_are(self):
        line = self.refuse("--num_devices=8", "--batch_size=8")
        self.assertIn("--num_devices=8", line)
        if keras.backend.backend() == "jax":
            self.assertIn("at most the number of visible devices, 4 (cpu:0, cpu:1, cpu:2, ", line)
        else:
            self.assertIn("needs JAX: set KERAS_BACKEND=jax", line)

    def test_one_device_changes_nothing(self):
        for number in (None, 1):
            with devices.used(number):
                self.assertIsNone(keras.distribution.distribution())
                self.assertLen(devices.names(), 1)
                batch = np.zeros((3, 2))
                self.assertIs(devices.divided(batch), batch)

    def test_an_unset_number_is_not_written(self):
        self.assertNotIn("num_devices", "".join(settings.Settings().flag_lines()))
        self.assertIn("--num_devices=2", settings.Settings(num_devices=2).flag_lines(True))


if keras.backend.backend() == "tensorflow":

    class ConstantFoldingTest(parameterized.TestCase):
        @parameterized.parameters(
            ("", "False"),
            ("options.set_experimental_options({'constant_folding': True})", "True"),
        )
        def test_a_run_turns_it_off_unless_the_user_has_set_it(self, before, expected):
            program = f"""
import tensorflow as tf
from ssl_noisy import devices
options = tf.config.optimizer
{before}
devices.make_repeatable()
print(options.get_experimental_options()["constant_folding"])"""
            printed = subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONPATH": ROOT},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            self.assertEqual(printed.strip(), expected)


if keras.backend.backend() == "jax":
    import jax

    def trained(method, num_devices, **kwargs):
        """Returns the state of each example and the losses of four steps, and the learner."""
        with devices.used(num_devices):
            learner, true_labels = toy.learner(method, **kwargs)
            parts, observe = set(), learner.observe

            def observed(indices, logits):
                jax.debug.inspect_array_sharding(
                    logits, callback=lambda found: parts.add(found.shard_shape(logits.shape))
                )
                observe(indices, logits)

            learner.observe = observed
            logs = [toy.fit(learner, true_labels, 1, step) for step in range(4)]
        return learner, logs, parts

    class SeveralDevicesTest(parameterized.TestCase):
        @parameterized.parameters(("fixmatch", 2), ("elr", 4))
        def test_the_steps_are_those_of_one_device(self, method, num_devices):
            one, expected, whole = trained(method, None)
            several, found, parts = trained(method, num_devices)
            self.assertEqual((whole, parts), ({(4, 10)}, {(4 // num_devices, 10)}))
            for one_log, log in zip(expected, found):
                for name, value in one_log.items():
                    np.testing.assert_allclose(log[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
            for a, b in zip(one.weights, several.weights):
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-6, atol=2e-6)
                if a.dtype.startswith(("int", "uint")):  # random states, counts
                    np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
            before, after = one.example_record(), several.example_record()
            for name in ("observations", "forgetting_events", "prediction", "last_correct"):
                np.testing.assert_array_equal(before[name], after[name], name)

        def test_an_example_in_the_parts_of_two_devices_by_hand(self):
            """Each device has all four unlabeled examples: 0, 2 are confident, 1 and 3 are not."""
            probs = [[0.97, 0.02, 0.01], [0.9, 0.05, 0.05], [0.02, 0.01, 0.97], [0.2, 0.6, 0.2]]
            with devices.used(2):
                learner = toy.make("flexmatch", probs, (0, 1, -1, -1), batch_size=2)
                learner.confident_labels.assign(np.array([1, 1, -1, -1], "int32"))
                learner.compile(keras.optimizers.SGD(0.0))
                toy.fit(learner, steps=2)
            np.testing.assert_array_equal(learner.confident_labels.numpy(), [0, 1, 2, -1])
            # A labeled example a device and step.
            np.testing.assert_array_equal(learner.example_record()["observations"], [2, 2, 0, 0])
            np.testing.assert_allclose(  # .97 - .02, and .05 - .9
                learner.example_record()["aum"][:2], [np.log(0.97 / 0.02), np.log(0.05 / 0.9)], 1e-5
            )

        def test_evaluations_are_divided(self):
            images, labels = toy.digits()
            made = settings.Settings(evaluation_batch_size=50)
            accuracies = []
            for number, size in ((None, 50), (4, 52)):
                with devices.used(number):
                    learner, _ = toy.learner("supervised")
                    dataset = absltest.mock.Mock(test_labels=labels, validation_labels=None)
                    self.assertEqual(evaluation.batch_size(made, dataset), size)
                    accuracies.append(evaluation.evaluate(learner, images, labels, size)[0])
                    part = devices.divided(np.zeros((52, 8, 8, 1), "uint8")) if number else None
            self.assertEqual(*accuracies)
            self.assertEqual([s.data.shape[0] for s in part.addressable_shards], [13] * 4)

        def test_which_devices_are_used(self):
            with devices.used(2):
                self.assertEqual(devices.names(), ["cpu:0", "cpu:1"])
            self.assertEqual(devices.names(), ["cpu:0"])
            with absltest.mock.patch.object(
                keras.distribution, "list_devices", return_value=["gpu:0", "gpu:1"]
            ):
                self.assertEqual(machine.accelerators(), ["gpu:0"])

    class KilledTest(absltest.TestCase):
        @pytest.mark.slow
        def test_a_killed_run_resumes_to_identical_results(self):
            whole, killed = (os.path.join(self.create_tempdir().full_path, n) for n in "ab")
            process = start(*SMALL, f"--run_dir={killed}")
            wait_for(process, lambda: os.path.exists(os.path.join(killed, checkpoint.NAME)))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            self.assertFalse(os.path.exists(os.path.join(killed, "result.json")))
            for folder in (whole, killed):
                code, _, errors = call(*SMALL, f"--run_dir={folder}")
                self.assertEqual(code, 0, errors)
            for name in ("metrics.csv", "examples.csv", "result.json"):
                self.assertEqual(read(whole, name), read(killed, name), name)
            model = keras.models.load_model(os.path.join(whole, "model.keras"))  # on one device
            digits = labeling.load_dataset(settings.Settings())
            predicted = np.argmax(model.predict(digits.test_images, verbose=0), axis=-1)
            self.assertAlmostEqual(
                np.mean(predicted == digits.test_labels),
                json.loads(read(whole, "result.json"))["test_accuracy"]["last"],
            )
            # Other numbers in the last bits are another run.
            code, _, errors = call(*SMALL, "--num_devices=4", f"--run_dir={whole}")
            self.assertEqual(code, 2)
            self.assertIn("--num_devices=2 there, --num_devices=4 here", errors[0])


if __name__ == "__main__":
    absltest.main()
