# SPDX-License-Identifier: Apache-2.0
"""The views as Keras layers: equal to their functions, and at home in a model or a pipeline."""

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from keras import ops

import ssl_noisy
from ssl_noisy import augment
from ssl_noisy.augment import ctaugment
from ssl_noisy.errors import UserError


def images(count=6, kind="uint8"):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(kind)


def made(name, **kwargs):
    if name == "Cutout":
        kwargs["size"] = (2, 7)
    return getattr(ssl_noisy, name)(seed=3, **kwargs)


def wrapped(name, x):
    """Returns what the function that a layer wraps makes of `x`."""
    seed = keras.random.SeedGenerator(3)
    return {
        "RandAugment": lambda: augment.rand_augment(x, seed),
        "Cutout": lambda: augment.cutout(x, seed, size=(2, 7)),
        "WeakView": lambda: augment.weak_view(x, seed),
        "CTAugment": lambda: ctaugment.strong_view(x, seed, ctaugment.initial_rates()),
    }[name]()


NAMES = ("RandAugment", "Cutout", "WeakView", "CTAugment")


class ViewTest(parameterized.TestCase):
    @parameterized.parameters(*NAMES)
    def test_it_equals_its_function_in_training_and_does_nothing_at_inference(self, name):
        x = images()
        wanted = ops.convert_to_numpy(wrapped(name, x))
        self.assertGreater(np.mean(wanted != x), 0.05)
        for kind in ("uint8", "float32", "float16"):
            view = made(name)(x.astype(kind), training=True)
            self.assertEqual(keras.backend.standardize_dtype(view.dtype), "float32")
            np.testing.assert_array_equal(view, wanted)
            np.testing.assert_array_equal(made(name)(x.astype(kind)), x)
        np.testing.assert_array_equal(made(name, dtype="float16")(x, training=True), wanted)

    @parameterized.parameters(*NAMES)
    @pytest.mark.slow
    def test_in_a_model_that_is_compiled_trained_saved_and_loaded(self, name):
        # On TensorFlow `fit` does not tell the size of a batch in advance, and 6 is less than 64.
        inputs = keras.Input((8, 8, 3))
        outputs = keras.layers.Dense(2)(keras.layers.Flatten()(made(name)(inputs)))
        model = keras.Model(inputs, outputs)
        # XLA takes a minute to compile the others; `augment_test` and `ctaugment_test` do so.
        model.compile("sgd", "mse", jit_compile=name in ("Cutout", "WeakView"))
        x = images()
        model.fit(x, np.zeros((6, 2)), batch_size=4, verbose=0)
        path = self.create_tempfile("model.keras").full_path
        model.save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(loaded(x), model(x))
        layer, again = model.layers[1], loaded.layers[1]
        self.assertEqual(again.get_config(), layer.get_config())
        np.testing.assert_array_equal(again(x, training=True), wrapped(name, x))

    def test_floats_are_rounded_to_whole_pixel_values(self):
        x = images(kind="float32")
        off = np.clip(x + 0.3, -9, 260)
        np.testing.assert_array_equal(
            made("RandAugment")(off, training=True), made("RandAugment")(x, training=True)
        )

    def test_an_unknown_shape_is_an_error(self):
        for shape in ((None, 8, 3), (8, 8, 4), (8, 8)):
            with self.assertRaisesRegex(UserError, "RandAugment takes images .* Received: shape"):
                made("RandAugment")(keras.KerasTensor((None, *shape), "uint8"))
        with self.assertRaisesRegex(UserError, "Unknown policy 'best'"):
            ssl_noisy.RandAugment("best")


class PipelineTest(absltest.TestCase):
    def test_batches_of_unknown_size(self):
        import tensorflow as tf

        x = images(130)
        dataset = tf.data.Dataset.from_tensor_slices(x).batch(100)

        def views():
            layer = made("Cutout")
            return np.concatenate(list(dataset.map(lambda batch: layer(batch, training=True))))

        if keras.backend.backend() != "tensorflow":
            with self.assertRaisesRegex(UserError, "`tf.data` on TensorFlow"):
                made("Cutout")(tf.constant(x), training=True)
            return
        once = views()
        np.testing.assert_array_equal(once[once != 127], x[once != 127])
        squares = (once != x).any(axis=-1)
        self.assertGreater(squares.any(axis=(1, 2)).mean(), 0.9)
        # The chunks, of 64, 36 and 30 images, have squares of their own.
        self.assertFalse(np.array_equal(squares[:30], squares[64:94]))
        self.assertFalse(np.array_equal(squares[:30], squares[100:]))
        np.testing.assert_array_equal(views(), once)


class CTAugmentTest(absltest.TestCase):
    def test_update_moves_the_rates_of_the_bins_that_probes_used(self):
        layer, x, labels = made("CTAugment"), images(), np.array([0, 1, 2, 0, 1, 2])
        seed = keras.random.SeedGenerator(3)
        probes, bins = ctaugment.probe(x, seed)
        seen = []

        def predict(batch):
            seen.append(ops.convert_to_numpy(batch))
            return ops.convert_to_tensor(np.tile(np.float32([[0.5, 0.3, 0.2]]), (6, 1)))

        layer.update(x, labels, predict)
        np.testing.assert_array_equal(seen[0], probes)
        # The proximity is the probability of the label: 1 - (0.5 + 0.3 + 0.2) / 2 = 0.5 of label 0.
        wanted = ctaugment.updated_rates(
            ctaugment.initial_rates(), bins, np.float32([0.5, 0.3, 0.2, 0.5, 0.3, 0.2])
        )
        np.testing.assert_allclose(layer.rates, wanted, rtol=1e-6)
        self.assertLess(ops.convert_to_numpy(layer.rates).sum(), ctaugment.initial_rates().sum())

    def test_rates_are_saved(self):
        model = keras.Sequential([keras.Input((8, 8, 3)), made("CTAugment")])
        model.layers[0].rates.assign(0.5 * ctaugment.initial_rates())
        path = self.create_tempfile("model.keras").full_path
        model.save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(loaded.layers[0].rates, model.layers[0].rates)


if __name__ == "__main__":
    absltest.main()
