# SPDX-License-Identifier: Apache-2.0
import collections
import functools
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from keras import ops
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ssl_noisy import augment
from ssl_noisy.augment import ctaugment

KNOBS = {name: len(counts) for name, counts in ctaugment.BINS.items()}
FILTERS = (
    Image.Resampling.LANCZOS,
    Image.Resampling.BICUBIC,
    Image.Resampling.BILINEAR,
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
    Image.Resampling.NEAREST,
)
SHAPES = {"color": (32, 32, 3), "gray": (8, 8, 1), "wide": (28, 40, 1)}


def blended(change):
    return lambda image, u: Image.blend(image, change(image), u)


def enhanced(kind):
    # The operations are in float32, and so is Pillow's blend.
    return lambda image, u: kind(image).enhance(float(np.float32(0.1) + np.float32(1.9) * u))


def sheared(place):
    def transform(image, u):
        coefficients = [1, 0, 0, 0, 1, 0]
        coefficients[place] = (2 * u - 1) * 0.3
        return image.transform(image.size, Image.Transform.AFFINE, coefficients)

    return transform


def moved(place):
    def transform(image, u):
        coefficients = [1, 0, 0, 0, 1, 0]
        coefficients[place] = (2 * u - 1) * 0.3 * image.size[place // 3]
        return image.transform(image.size, Image.Transform.AFFINE, coefficients)

    return transform


def rescaled(image, u, v):
    share, (width, height) = 0.25 * u, image.size
    box = (share * width, share * height, width * (1 - share), height * (1 - share))
    return image.crop(box).resize(image.size, FILTERS[int(5.99 * v)])


PILLOW = {
    "autocontrast": blended(ImageOps.autocontrast),
    "blur": blended(lambda image: image.filter(ImageFilter.BLUR)),
    "brightness": enhanced(ImageEnhance.Brightness),
    "color": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "equalize": blended(ImageOps.equalize),
    "identity": lambda image: image,
    "invert": blended(ImageOps.invert),
    "posterize": lambda image, u: ImageOps.posterize(image, 1 + int(7.999 * u)),
    "rescale": rescaled,
    "rotate": lambda image, u: image.rotate(int(np.round((2 * u - 1) * 45))),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "shear_x": sheared(1),
    "shear_y": sheared(3),
    "smooth": blended(lambda image: image.filter(ImageFilter.SMOOTH)),
    "solarize": lambda image, u: ImageOps.solarize(image, int(255.999 * u)),
    "translate_x": moved(2),
    "translate_y": moved(5),
}


def pillow(name, images, *values):
    results = []
    for image, *numbers in zip(images, *values, strict=True):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        result = PILLOW[name](image, *(float(number) for number in numbers))
        results.append(np.array(result).reshape(images.shape[1:]))
    return np.stack(results)


def noise(shape, count, seed=0):
    """Returns uint8 images: half are noise over the full range, half a part of it on a ramp."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape))
    ramp = np.linspace(20, 140, shape[1])[:, None]
    images[::2] = ramp + images[::2] // 4
    return images.astype("uint8")


def compiled(function, seed=None):
    """Returns `function(*arrays)` compiled by XLA; `seed` advances as it does eagerly."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    import jax

    if seed is None:
        return jax.jit(function)

    @jax.jit
    def stateless(state, *arrays):
        with keras.StatelessScope(state_mapping=[(seed.state, state)]) as scope:
            results = function(*arrays)
        return results, scope.get_current_value(seed.state)

    def run(*arrays):
        results, state = stateless(seed.state.value, *arrays)
        seed.state.assign(state)
        return results

    return run


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def row(name, knob=0):
    """Returns the row of the rates that belongs to a knob of an operation."""
    names = list(ctaugment.BINS)
    return sum(KNOBS[before] for before in names[: names.index(name)]) + knob


def only(*names):
    """Replaces all other operations by the identity."""
    everything = ctaugment.operations

    def some(seed, **kwargs):
        return {
            name: operation if name in names else lambda images, *_: images
            for name, operation in everything(seed, **kwargs).items()
        }

    return mock.patch.object(ctaugment, "operations", some)


class OperationsTest(parameterized.TestCase):
    @parameterized.product(name=list(PILLOW), kind=list(SHAPES))
    def test_equals_pillow(self, name, kind):
        images = noise(SHAPES[kind], 60)
        values = np.random.default_rng(1).random((KNOBS[name], 60)).astype("float32")
        values[:, :2] = np.array([0, 1 - 2.0**-24])
        function = lambda *arguments: ctaugment.operations(None)[name](*arguments)  # noqa: E731
        run = compiled(function) if kind == "color" else function
        result = run(images.astype("float32"), *values)
        expected = pillow(name, images, *values)
        self.assertEqual(keras.backend.standardize_dtype(result.dtype), "float32")
        np.testing.assert_array_equal(numpy(result), expected)
        idle = name == "identity" or (name, kind) == ("equalize", "gray")
        idle = idle or (name == "color" and kind != "color")
        self.assertEqual(np.mean(expected != images) < 0.1, idle)

    @parameterized.product(method=list(range(6)), shape=[(32, 32, 3), (28, 28, 1), (31, 45, 3)])
    def test_rescale_equals_pillow_for_every_filter(self, method, shape):
        images = noise(shape, 50)
        values = np.linspace(0, 1, 50).astype("float32")
        methods = np.full(50, method, "float32")
        result = ctaugment.rescale(images, 0.25 * values, methods)
        expected = pillow("rescale", images, values, (methods + 0.5) / 6)
        np.testing.assert_array_equal(numpy(result), expected)

    def test_names_and_bins(self):
        self.assertEqual(list(ctaugment.operations(None)), list(ctaugment.BINS))
        self.assertCountEqual(ctaugment.BINS, [*PILLOW, "cutout"])
        special = {"identity": (), "posterize": (8,), "rescale": (17, 6)}
        for name, counts in ctaugment.BINS.items():
            self.assertEqual(counts, special.get(name, (17,)))

    @parameterized.parameters((0.0, 0), (0.1, 2), (0.45, 8), (0.9, 14), (1.0, 16))
    def test_cutout(self, value, side):
        # 1 + int(0.499 * 32 * value) pixels, minus one if that is odd.
        seed = keras.random.SeedGenerator(3)
        images = np.full((200, 32, 32, 3), 255, "float32")
        values = np.full(200, value, "float32")
        hole = numpy(ctaugment.operations(seed)["cutout"](images, values))
        self.assertTrue(np.isin(hole, (127, 255)).all())
        hole = (hole == 127).all(axis=-1)
        rows, columns = hole.any(axis=2), hole.any(axis=1)
        np.testing.assert_array_equal(hole, rows[:, :, None] & columns[:, None, :])
        for extents in (rows, columns):
            sizes = extents.sum(axis=1)
            self.assertEqual(sizes.max(), side)
            self.assertEqual(sizes.min() < side, side > 0)

    @parameterized.parameters("translate_x", "translate_y")
    def test_translation_of_pixels_does_nothing(self, name):
        images = noise((32, 32, 3), 20).astype("float32")
        values = np.linspace(0, 0.4, 20).astype("float32")
        for pixels in (True, False):
            operation = ctaugment.operations(None, pixel_translation=pixels)[name]
            same = (numpy(operation(images, values)) == images).all(axis=(1, 2, 3))
            self.assertEqual(same.tolist(), [pixels] * 20)


class RatesTest(parameterized.TestCase):
    def test_initial_rates(self):
        rates = ctaugment.initial_rates()
        self.assertEqual((rates.shape, rates.dtype), ((19, 17), "float32"))
        counts = np.full(19, 17)
        counts[row("posterize")], counts[row("rescale", 1)] = 8, 6
        np.testing.assert_array_equal(rates, np.arange(17) < counts[:, None])

    def test_probabilities(self):
        rates = ctaugment.initial_rates()
        # With 0.01 added: 0.5, 0.4, 0.39, 0.45. Of the best: 1, 0.8, 0.78, 0.9.
        filters = row("rescale", 1)
        rates[filters, :6] = 0.49, 0.3901, 0.38, 0.44, 0, 0
        rates[0] = 0
        result = numpy(ctaugment.probabilities(rates))
        expected = np.array([0.5, 0.4001, 0, 0.45, 0, 0]) / 1.3501
        np.testing.assert_allclose(result[filters, :6], expected, rtol=1e-5)
        # A row of zeros still has the added 0.01.
        np.testing.assert_allclose(result[0], np.full(17, 1 / 17), rtol=1e-6)
        np.testing.assert_allclose(result[row("posterize"), :8], np.full(8, 1 / 8), rtol=1e-6)
        self.assertEqual(result[ctaugment.initial_rates() == 0].max(), 0)

    def test_threshold_counts_the_added_hundredth(self):
        rates = ctaugment.initial_rates()
        # 0.079 is 0.79 of 0.1, but 0.089 is 0.809 of 0.11.
        rates[3] = [0.1, 0.079, 0.077, *[0] * 14]
        result = numpy(ctaugment.probabilities(rates))[3]
        np.testing.assert_allclose(result[:3], [110 / 199, 89 / 199, 0], rtol=1e-4)

    @parameterized.parameters(False, True)
    def test_update(self, jit):
        update = compiled(ctaugment.updated_rates) if jit else ctaugment.updated_rates
        rates = ctaugment.initial_rates()
        rates[rates > 0] = np.random.default_rng(0).random(int(rates.sum()))
        rates[2, 5], rates[7, 0], rates[4, 16], rates[4, 3] = 0.8, 0.5, 1, 0.6
        none = -1
        bins = np.array(
            [
                [[2 * 17 + 5, none], [7 * 17, 4 * 17 + 16]],
                [[4 * 17 + 3, none], [7 * 17, none]],
                [[none, none], [none, none]],
                [[4 * 17 + 3, none], [4 * 17 + 3, none]],
            ],
            "int32",
        )
        result = numpy(update(rates, bins, np.array([0.3, 0.7, 0, 0.1], "float32")))
        expected = rates.copy()
        # Once: 0.99 * rate + 0.01 * proximity.
        expected[2, 5] = 0.792 + 0.003
        expected[4, 16] = 0.99 + 0.003
        # Twice, 0.3 and 0.7: 0.9801 * rate + 0.0199 * 0.5.
        expected[7, 0] = 0.49005 + 0.00995
        # 0.7, 0.1, 0.1: 0.970299 * rate + 0.029701 * 0.3.
        expected[4, 3] = 0.5821794 + 0.0089103
        np.testing.assert_allclose(result, expected, atol=2e-7)
        untouched = np.ones(rates.shape, bool)
        untouched[[2, 4, 7, 4], [5, 16, 0, 3]] = False
        np.testing.assert_array_equal(result[untouched], rates[untouched])

    def test_repeated_updates_leave_the_padding(self):
        seed = keras.random.SeedGenerator(0)
        images = noise((8, 8, 1), 190)
        rates, padding = ctaugment.initial_rates(), ctaugment.initial_rates() == 0
        with only():
            run = compiled(lambda images: ctaugment.probe(images, seed), seed)
            for _ in range(5):
                _, bins = run(images)
                rates = numpy(ctaugment.updated_rates(rates, bins, np.full(190, 0.2)))
        np.testing.assert_array_equal(rates[padding], 0)
        self.assertLess(rates[~padding].mean(), 0.99)
        self.assertGreater(rates[~padding].min(), 0.2)

    def test_update_follows_the_authors_code(self):
        # One after another: an early probe has a slightly smaller weight than a late one.
        rates = ctaugment.initial_rates()
        bins = np.full((40, 2, 2), -1, "int32")
        bins[:, 0, 0] = np.arange(40) % 3
        proximity = np.random.default_rng(0).random(40).astype("float32")
        expected = np.ones(3)
        for place, value in zip(bins[:, 0, 0], proximity, strict=True):
            expected[place] = 0.99 * expected[place] + 0.01 * value
        result = numpy(ctaugment.updated_rates(rates, bins, proximity))[0, :3]
        np.testing.assert_allclose(result, expected, atol=2e-3)
        self.assertLess(result.max(), 0.97)


class DrawsTest(parameterized.TestCase):
    @parameterized.parameters(2, 9)
    def test_strong_view_draws_by_rates(self, best):
        """One bin of brightness, and two bins of posterize with rates 1 and 0.9."""
        rates = ctaugment.initial_rates()
        rates[row("brightness")] = 0
        rates[row("brightness"), best] = 1
        rates[row("posterize"), :8] = [0, 1, 0, 0, 0.9, 0.7, 0, 0]
        seen = collections.defaultdict(list)

        def record(seed, **kwargs):
            def note(name, images, *values):
                seen[name].extend(numpy(value) for value in values)
                return images

            return {name: functools.partial(note, name) for name in ctaugment.BINS}

        images = np.zeros((190, 8, 8, 1), "float32")
        seed = keras.random.SeedGenerator(1)
        with mock.patch.object(ctaugment, "operations", record):
            for _ in range(40):
                ctaugment.strong_view(images, seed, rates)
        values = {name: np.concatenate(parts) for name, parts in seen.items() if parts}
        self.assertLen(values["brightness"], 800)
        self.assertBetween(values["brightness"].min(), best / 17, (best + 0.1) / 17)
        self.assertBetween(values["brightness"].max(), (best + 0.9) / 17, (best + 1) / 17)
        bins = np.bincount(np.floor(8 * values["posterize"]).astype(int), minlength=8)
        self.assertEqual(bins.sum(), bins[1] + bins[4])
        self.assertAlmostEqual(bins[1] / 800, 1.01 / 1.92, delta=0.07)
        # The others stay uniform: bins, and places in them.
        counts = np.histogram(values["invert"], bins=17, range=(0, 1))[0]
        self.assertBetween(((counts - 800 / 17) ** 2).sum() * 17 / 800, 3, 40)

    def test_probe_tells_which_bins_it_used(self):
        """Brightness of a constant image tells the value, and so the bin."""
        images = np.full((190, 8, 8, 1), 100, "float32")
        seed = keras.random.SeedGenerator(1)
        bins, levels = [], []
        with only("brightness"):
            run = compiled(lambda images: ctaugment.probe(images, seed), seed)
            for _ in range(30):
                views, used = run(images)
                levels.append(numpy(views)[:, 0, 0, 0])
                bins.append(numpy(used))
        bins, levels = np.concatenate(bins), np.concatenate(levels)
        self.assertEqual((bins.shape, bins.dtype), ((5700, 2, 2), "int32"))
        first = 17 * row("brightness")
        applied = (bins >= first) & (bins < first + 17)
        np.testing.assert_array_equal(applied[:, :, 1], False)
        times = applied.sum(axis=(1, 2))
        np.testing.assert_array_equal(levels[times == 0], 100)
        once = times == 1
        self.assertAlmostEqual(once.mean(), 2 * 18 / 19**2, delta=0.015)
        value = (levels[once] / 100 - 0.1) / 1.9
        used = bins[once][applied[once]] - first
        # One gray level is 0.09 bins.
        self.assertTrue((np.abs(value * 17 - used - 0.5) < 0.6).all())
        counts = np.bincount(used, minlength=17)
        self.assertBetween(((counts - counts.mean()) ** 2).sum() / counts.mean(), 3, 40)

    def test_probes_draw_operations_and_knobs_uniformly(self):
        seed = keras.random.SeedGenerator(4)
        images = np.zeros((190, 8, 8, 1), "float32")
        with only():
            run = compiled(lambda images: ctaugment.probe(images, seed), seed)
            bins = [numpy(run(images)[1]) for _ in range(100)]
        bins = np.concatenate(bins)
        places, counts = np.unique(bins[:, :, 0], return_counts=True)
        expected = {-1: 1 / 19}
        for name, (count, *_) in ((n, c) for n, c in ctaugment.BINS.items() if c):
            expected |= {17 * row(name) + bin_: 1 / 19 / count for bin_ in range(count)}
        self.assertCountEqual(places, expected)
        expected = bins[:, :, 0].size * np.array([expected[place] for place in places])
        statistic = ((counts - expected) ** 2 / expected).sum()
        self.assertLess(abs(statistic - len(places)) / np.sqrt(2 * len(places)), 4)
        # The filter has an effect only with the scale.
        scales = 17 * row("rescale") + np.arange(17)
        rescaled = np.isin(bins[:, :, 0], scales)
        places, counts = np.unique(bins[:, :, 1][rescaled], return_counts=True)
        self.assertEqual(places.tolist(), list(range(17 * row("rescale", 1), places[0] + 6)))
        self.assertLess(np.abs(counts / counts.mean() - 1).max(), 0.25)
        np.testing.assert_array_equal(bins[:, :, 1][~rescaled], -1)
        # The two operations of an image are independent: the same one in 1 of 19.
        same = bins[:, 0, 0] // 17 == bins[:, 1, 0] // 17
        self.assertAlmostEqual(same.mean(), 1 / 19, delta=0.01)


class ViewsTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_compiled_strong_view_of_gray_images(self):
        images = noise((8, 8, 1), 190).astype("float32")
        rates = ctaugment.initial_rates()
        seed = keras.random.SeedGenerator(5)
        run = compiled(lambda x, rates: ctaugment.strong_view(x, seed, rates), seed)
        state = numpy(seed.state)
        first, second = numpy(run(images, rates)), numpy(run(images, rates))
        seed.state.assign(state)
        np.testing.assert_array_equal(numpy(run(images, rates)), first)
        for view in (first, second):
            self.assertEqual((view.shape, view.dtype), (images.shape, "float32"))
            self.assertBetween(view.min(), 0, 255)
            self.assertBetween(view.max(), 0, 255)
            np.testing.assert_array_equal(view, np.floor(view))
        self.assertGreater(np.mean(first != images), 0.3)
        self.assertGreater(np.mean(first != second), 0.3)

    def test_compiled_half_precision_equals_eager_uint8(self):
        images = noise((32, 32, 3), 60)
        seed = keras.random.SeedGenerator(5)
        rates = ctaugment.initial_rates()
        view = lambda images: ctaugment.strong_view(images, seed, rates)  # noqa: E731

        # TensorFlow's generator returns other numbers under XLA.
        def uniform(shape, dtype, seed):
            return ops.convert_to_tensor(np.random.default_rng(shape[-1]).random(shape), dtype)

        with mock.patch.object(keras.random, "uniform", uniform):
            eager = view(images)
            self.addCleanup(keras.config.set_floatx, "float32")
            keras.config.set_floatx("float16")
            half = compiled(view, seed)(images.astype("float16"))
        self.assertEqual(keras.backend.standardize_dtype(half.dtype), "float32")
        np.testing.assert_array_equal(numpy(half), numpy(eager))
        np.testing.assert_array_equal(numpy(eager), np.floor(numpy(eager)))
        self.assertBetween(numpy(eager).max(), 200, 255)
        self.assertGreater(np.mean(numpy(eager) != images), 0.3)

    @parameterized.parameters((32, 40, 16), (8, 8, 4))
    def test_strong_view_is_weak_view_and_cutout_around_the_operations(self, height, width, side):
        images = np.full((190, height, width, 1), 255, "float32")
        seed = keras.random.SeedGenerator(5)
        weak = mock.Mock(side_effect=augment.weak_view)
        with only(), mock.patch.object(augment, "weak_view", weak):
            view = numpy(
                ctaugment.strong_view(
                    images, seed, ctaugment.initial_rates(), flip=False, max_shift=1
                )
            )
        weak.assert_called_once_with(images, seed, flip=False, max_shift=1, crop_area=None)
        np.testing.assert_array_equal(np.unique(view), [127, 255])
        self.assertEqual((view == 127).any(axis=(2, 3)).sum(axis=1).max(), side)
        self.assertEqual((view == 127).any(axis=(1, 3)).sum(axis=1).max(), side)

    @parameterized.parameters(True, False)
    def test_pixel_translation_reaches_the_operations(self, pixels):
        images = noise((8, 8, 1), 190).astype("float32")
        seed = keras.random.SeedGenerator(5)
        with only("translate_x", "translate_y"):
            view, _ = ctaugment.probe(images, seed, pixel_translation=pixels)
            strong = mock.Mock(side_effect=ctaugment.operations)
            with mock.patch.object(ctaugment, "operations", strong):
                rates = ctaugment.initial_rates()
                ctaugment.strong_view(images, seed, rates, pixel_translation=pixels)
        self.assertEqual(np.array_equal(numpy(view), images), pixels)
        strong.assert_called_with(seed, pixel_translation=pixels)


if __name__ == "__main__":
    absltest.main()
