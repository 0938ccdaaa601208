# SPDX-License-Identifier: Apache-2.0
import collections
import colorsys
import dataclasses
import functools
import itertools
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from keras import ops
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_images

from ssl_noisy import augment
from ssl_noisy.augment import views as augment_views

GRAY = 127
LEVELS = range(1, 10)

# Expected magnitudes of the FixMatch code, levels 1 to 9, written by hand.
ENHANCE = (0.28, 0.46, 0.64, 0.82, 1.0, 1.18, 1.36, 1.54, 1.72)
BITS = (4, 4, 3, 3, 2, 2, 2, 1, 1)
THRESHOLDS = (231, 205, 180, 154, 128, 103, 77, 52, 26)
DEGREES = (3, 6, 9, 12, 15, 18, 21, 24, 27)
SHEARS = (0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21, 0.24, 0.27)
SHIFTS = tuple(level / 32 for level in LEVELS)


def signed(values):
    return sorted([*values, *(-value for value in values)])


def affine(*data):
    """Returns a reference function; `None` in `data` stands for the magnitude."""

    def transform(image, magnitude):
        coefficients = tuple(magnitude if value is None else value for value in data)
        fill = (GRAY,) * len(image.getbands())
        return image.transform(image.size, Image.Transform.AFFINE, coefficients, fillcolor=fill)

    return transform


def turned(image, degrees):
    return image.rotate(degrees, fillcolor=(GRAY,) * len(image.getbands()))


PILLOW = {
    "rotate": turned,
    "shear_x": affine(1, None, 0, 0, 1, 0),
    "shear_y": affine(1, 0, 0, None, 1, 0),
    "translate_x": affine(1, 0, None, 0, 1, 0),
    "translate_y": affine(1, 0, 0, 0, 1, None),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
}
UDA = {*PILLOW, "invert", "cutout"} - {"identity"}
FACTORS = (*ENHANCE, *np.linspace(0, 2, 60))
MAGNITUDES = {
    "rotate": (*signed(DEGREES), 0, *np.linspace(-30, 30, 60)),
    "shear_x": (*signed(SHEARS), 0, *np.linspace(-0.3, 0.3, 60)),
    "shear_y": (*signed(SHEARS), 0, *np.linspace(-0.3, 0.3, 60)),
    "translate_x": (*range(-9, 10), *np.linspace(-9.6, 9.6, 60)),
    "translate_y": (*range(-9, 10), *np.linspace(-9.6, 9.6, 60)),
    "brightness": FACTORS,
    "color": FACTORS,
    "contrast": FACTORS,
    "sharpness": FACTORS,
    "posterize": range(1, 9),
    "solarize": (*THRESHOLDS, 0, 256, *np.linspace(0, 256, 60)),
}


@functools.cache
def photographs(height=32, width=32, count=72):
    """Returns uint8 crops of scikit-learn's two photographs, at three scales."""
    rng = np.random.default_rng(0)
    originals = load_sample_images().images
    crops = []
    for i in range(count):
        photograph = originals[i % 2]
        stride = (1, 3, 9)[i // 2 % 3]
        top = rng.integers(photograph.shape[0] - height * stride)
        left = rng.integers(photograph.shape[1] - width * stride)
        crop = photograph[top:, left:][: height * stride : stride, : width * stride : stride]
        crops.append(crop)
    return np.stack(crops)


def digits(count):
    """Returns 8x8 grayscale digits, spread to 0..255."""
    return np.floor(load_digits().images[:count, ..., None] * 255 / 16).astype("uint8")


def gray(images):
    return np.stack([np.array(Image.fromarray(image).convert("L")) for image in images])[..., None]


def pillow(name, images, magnitudes):
    """Applies an operation of Pillow to each image with its own magnitude."""
    results = []
    for image, magnitude in zip(images, magnitudes, strict=True):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        results.append(np.array(PILLOW[name](image, magnitude)).reshape(images.shape[1:]))
    return np.stack(results)


def compiled(function, seed=None, jit=True):
    """Returns `function(images)` compiled; `seed` advances as it does eagerly."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=jit, autograph=False)
    import jax

    if seed is None:
        return jax.jit(function)

    @jax.jit
    def stateless(state, images):
        with keras.StatelessScope(state_mapping=[(seed.state, state)]) as scope:
            views = function(images)
        return views, scope.get_current_value(seed.state)

    def run(images):
        views, state = stateless(seed.state.value, images)
        seed.state.assign(state)
        return views

    return run


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def many_views(view, image, batch, repeats):
    """Draws `repeats` batches of views of one image: `(repeats, batch, h, w, c)`."""
    seed = keras.random.SeedGenerator(7)
    run = compiled(lambda images: view(images, seed), seed)
    images = np.repeat(image[None].astype("float32"), batch, axis=0)
    return np.stack([numpy(run(images)) for _ in range(repeats)])


def fixed_uniform(*rows):
    """Replaces `keras.random.uniform`: returns `rows` one by one, whatever the arguments."""
    numbers = np.array(rows, "float32")

    def uniform(shape, dtype, seed):
        return ops.convert_to_tensor(np.broadcast_to(numbers, shape), dtype)

    return mock.patch.object(keras.random, "uniform", uniform)


def chi_square(counts):
    """Returns the distance of `counts` from uniform, in standard deviations of chi-square."""
    counts = np.asarray(counts, "float64")
    freedom = counts.size - 1
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    return (statistic - freedom) / np.sqrt(2 * freedom)


class OperationsTest(parameterized.TestCase):
    @parameterized.product(
        name=[*MAGNITUDES, "autocontrast", "equalize"],
        kind=["photographs", "compiled", "gray", "wide"],
    )
    def test_equals_pillow(self, name, kind):
        images = photographs(40, 64, 24) if kind == "wide" else photographs()
        images = gray(images) if kind == "gray" else images
        # Every magnitude once, on as many images.
        values = np.array(MAGNITUDES.get(name, [0] * len(images)), "float32")
        images = images[np.arange(len(values)) % len(images)]
        arguments = [values] if name in MAGNITUDES else []
        function = lambda images: getattr(augment, name)(images, *arguments)  # noqa: E731
        run = function if kind == "photographs" else compiled(function)
        result = run(images.astype("float32"))
        expected = pillow(name, images, values.tolist())
        self.assertEqual(keras.backend.standardize_dtype(result.dtype), "float32")
        np.testing.assert_array_equal(numpy(result), expected)
        if (name, kind) == ("color", "gray"):
            np.testing.assert_array_equal(expected, images)
        else:
            self.assertGreater(np.mean(expected != images), 0.1)

    def test_autocontrast_equals_pillow_for_every_range(self):
        # 255 / (high - low) in double precision misses whole numbers by an ulp.
        ranges = [(low, high) for low in range(0, 255, 15) for high in range(low, 256)]
        ramps = np.array([np.clip(np.arange(256), *extremes) for extremes in ranges])
        ramps = ramps.reshape(-1, 16, 16, 1).astype("uint8")
        expected = pillow("autocontrast", ramps, [None] * len(ramps))
        np.testing.assert_array_equal(numpy(augment.autocontrast(ramps)), expected)

    def test_invert_equals_pillow(self):
        images = photographs()
        expected = np.stack([np.array(ImageOps.invert(Image.fromarray(i))) for i in images])
        result = augment.invert(images)
        self.assertEqual(keras.backend.standardize_dtype(result.dtype), "float32")
        np.testing.assert_array_equal(numpy(result), expected)

    @parameterized.parameters("autocontrast", "equalize")
    def test_constant_image_stays(self, name):
        images = np.stack([np.full((32, 32, 3), value, "float32") for value in (0, 93, 255)])
        np.testing.assert_array_equal(numpy(getattr(augment, name)(images)), images)

    def test_equalize_small_images_as_pillow(self):
        images = digits(50)
        np.testing.assert_array_equal(numpy(augment.equalize(images)), images)
        np.testing.assert_array_equal(pillow("equalize", images, [None] * 50), images)

    def test_sharpness_of_a_line_is_the_line_as_in_pillow(self):
        line = np.arange(0, 250, 50, dtype="uint8").reshape(1, 1, 5, 1)
        for images in (line, line.reshape(1, 5, 1, 1)):
            ours = augment.sharpness(images.astype("float32"), np.array([0.1], "float32"))
            np.testing.assert_array_equal(ops.convert_to_numpy(ours), images)
            pil = ImageEnhance.Sharpness(Image.fromarray(images[0, ..., 0])).enhance(0.1)
            np.testing.assert_array_equal(np.asarray(pil), images[0, ..., 0])

    def test_fill(self):
        images = np.full((1, 8, 8, 3), 200.0)
        for fill in (0.0, 127.0):
            moved = numpy(augment.translate_x(images, np.array([3.0]), fill=fill))
            np.testing.assert_array_equal(moved[0, :, :5], 200.0)
            np.testing.assert_array_equal(moved[0, :, 5:], fill)

    def test_shape_is_checked(self):
        for shape in [(32, 32, 3), (2, 32, 32, 4)]:
            with self.assertRaisesRegex(ValueError, "1 or 3 channels.*Received"):
                augment.brightness(np.zeros(shape), np.ones(2))


class PoliciesTest(parameterized.TestCase):
    def test_names(self):
        self.assertEqual(
            augment.POLICIES, ("google_code", "paper", "torchssl", "usb", "uda", "scan", "lsa")
        )
        with self.assertRaisesRegex(
            ValueError, "'fixmatch'.*google_code, paper, torchssl, usb, uda, scan, lsa"
        ):
            augment.rand_augment(np.zeros((1, 8, 8, 1)), None, policy="fixmatch")

    @parameterized.parameters(
        ("google_code", 2, 0.5, -256, (0.5, 0.5)),
        ("paper", 2, 1.0, GRAY, (0.0, 0.5)),
        ("torchssl", 3, 1.0, 0, (0.0, 0.5)),
        ("usb", 3, 1.0, 0, (0.0, 0.5)),
        ("uda", 2, 0.5, -256, (0.5, 0.5)),
        ("scan", 4, 1.0, 0, (0.0, 0.5)),
        ("lsa", 1, 1.0, 0, None),
    )
    def test_rules(self, name, draws, probability, fill, cutout):
        policy = augment.RAND_AUGMENT[name]
        self.assertEqual((policy.draws, policy.probability), (draws, probability))
        self.assertEqual((policy.warp_fill, policy.cutout), (fill, cutout))
        self.assertEqual(policy.continuous, name in ("paper", "torchssl", "usb", "scan"))
        self.assertCountEqual(policy.magnitudes, UDA if name == "uda" else PILLOW)

    def test_lsa_is_a_fifth_of_the_ranges_of_torchvision(self):
        # Each has 31 magnitudes from nothing to the whole range; 6 is a fifth of it.
        signed = {"rotate": 30, "shear_x": 0.3, "shear_y": 0.3}
        signed |= dict.fromkeys(("translate_x", "translate_y"), 150 / 331)
        around = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.9)
        magnitudes = augment.RAND_AUGMENT["lsa"].magnitudes
        for name, whole in signed.items():
            np.testing.assert_allclose(magnitudes[name], (-whole / 5, whole / 5), err_msg=name)
        for name, whole in around.items():
            np.testing.assert_allclose(magnitudes[name], (1 - whole / 5, 1 + whole / 5))
        self.assertEqual(magnitudes["posterize"], (8 - round(6 / (30 / 4)),))
        self.assertEqual(magnitudes["solarize"], (255 * 4 / 5,))

    @parameterized.parameters("google_code", "uda")
    def test_google_code_levels(self, policy):
        expected = {
            "rotate": signed(DEGREES),
            "shear_x": signed(SHEARS),
            "shear_y": signed(SHEARS),
            "translate_x": signed(SHIFTS),
            "translate_y": signed(SHIFTS),
            "brightness": ENHANCE,
            "color": ENHANCE,
            "contrast": ENHANCE,
            "sharpness": ENHANCE,
            "posterize": sorted(BITS),
            "solarize": sorted(THRESHOLDS),
        }
        for name, values in expected.items():
            levels = sorted(augment.RAND_AUGMENT[policy].magnitudes[name])
            np.testing.assert_allclose(levels, values, rtol=1e-12, err_msg=name)

    def test_uda_cutout_is_two_to_eighteen_of_32_pixels(self):
        levels = 32 * np.array(augment.RAND_AUGMENT["uda"].magnitudes["cutout"])
        np.testing.assert_array_equal(levels, range(2, 20, 2))

    @parameterized.parameters(("paper", 0.3), ("torchssl", 0.3), ("usb", 0.3), ("scan", 0.1))
    def test_paper_ranges(self, name, largest):
        expected = {
            "rotate": (-30, 30),
            "shear_x": (-largest, largest),
            "shear_y": (-largest, largest),
            "translate_x": (-largest, largest),
            "translate_y": (-largest, largest),
            "brightness": (0.05, 0.95),
            "color": (0.05, 0.95),
            "contrast": (0.05, 0.95),
            "sharpness": (0.05, 0.95),
            "posterize": (4, 8),
            "solarize": (0, 256),
        }
        magnitudes = augment.RAND_AUGMENT[name].magnitudes
        self.assertEqual(expected, {key: magnitudes[key] for key in expected})


class RandAugmentTest(parameterized.TestCase):
    @parameterized.parameters((56, 40), (9, 250))
    def test_operations_and_levels_are_uniform(self, batch, repeats):
        """One draw of `google_code`, recognized by the pixels it returns."""
        image = photographs()[1]
        meaning = collections.defaultdict(set)
        for name, levels in augment.RAND_AUGMENT["google_code"].magnitudes.items():
            scale = 32 if name.startswith("translate") else 1
            values = (np.array(levels) * scale).astype("float32")
            batch_of_one = np.repeat(image[None], len(values), axis=0)
            for result, value in zip(
                pillow(name, batch_of_one, values.tolist()), levels, strict=True
            ):
                meaning[result.tobytes()].add((name, value))
        meaning[image.tobytes()] = {("identity", 0)}
        self.assertTrue(all(len({name for name, _ in m}) == 1 for m in meaning.values()))

        one_draw = dataclasses.replace(augment.RAND_AUGMENT["google_code"], draws=1)
        with mock.patch.dict(augment.RAND_AUGMENT, google_code=one_draw):
            views = many_views(augment.rand_augment, image, batch, repeats)
        seen = np.empty((repeats, batch), object)
        for place in np.ndindex(seen.shape):
            seen[place] = min(meaning[views[place].astype("uint8").tobytes()])
        names = np.vectorize(lambda pair: pair[0])(seen)
        self.assertGreater(np.mean([len(set(row)) for row in names]), 0.4 * min(batch, 14))
        applied = sorted(set(PILLOW) - {"identity"})
        # An operation is applied with probability 1/2, at each place of the batch.
        share = np.mean(names != "identity", axis=0)
        self.assertAlmostEqual(share.mean(), 13 / 28, delta=0.03)
        self.assertLess(np.abs(share - 13 / 28).max(), 4.5 * 0.5 / np.sqrt(repeats))
        counts = [np.sum(names == name, axis=0) for name in applied]
        self.assertLess(chi_square(counts), 4)
        self.assertGreater(np.min(np.sum(counts, axis=1)), 0.7 * names.size / 28)
        signs = [value > 0 for name, value in seen.flat if name in ("rotate", "translate_x")]
        self.assertAlmostEqual(np.mean(signs), 0.5, delta=0.15)
        bits = [value for name, value in seen.flat if name == "posterize"]
        self.assertAlmostEqual(np.mean(np.equal(bits, 2)), 3 / 9, delta=0.2)

    def test_draws_are_with_replacement_and_independent(self):
        image = photographs()[1]
        levels = {name: (0.3,) for name in PILLOW} | {
            "rotate": (20,),
            "posterize": (2,),
            "solarize": (90,),
        }
        magnitudes = {name: levels[name] for name in augment.RAND_AUGMENT["paper"].magnitudes}
        twice = dataclasses.replace(
            augment.RAND_AUGMENT["paper"], magnitudes=magnitudes, continuous=False
        )
        with mock.patch.dict(augment.RAND_AUGMENT, paper=twice):
            views = many_views(
                functools.partial(augment.rand_augment, policy="paper"), image, 56, 50
            )
        views = collections.Counter(
            view.astype("uint8").tobytes() for view in views.reshape(-1, 32, 32, 3)
        )
        for first, second in [("brightness", "brightness"), ("equalize", "solarize")]:
            expected = image[None]
            for name in (first, second):
                expected = pillow(name, expected, levels[name])
            # One in 14 * 14 of 2800 views.
            self.assertBetween(views[expected.tobytes()], 5, 25)

    def test_uda_inverts_and_cuts_each_one_image_in_thirty_a_draw(self):
        one_draw = dataclasses.replace(augment.RAND_AUGMENT["uda"], draws=1)
        image = np.where(photographs()[1] == GRAY, GRAY + 1, photographs()[1])
        with mock.patch.dict(augment.RAND_AUGMENT, uda=one_draw):
            view = functools.partial(augment.rand_augment, policy="uda")
            views = many_views(view, image, 60, 60)
        self.assertTrue(((views == 255 - image).all(axis=(2, 3, 4)).sum(axis=1) == 2).all())
        gray = (views == GRAY).all(axis=-1)
        cut = ((views == image).all(axis=-1) | gray).all(axis=(2, 3)) & gray.any(axis=(2, 3))
        self.assertTrue((cut.sum(axis=1) == 2).all())
        # 15 of 30 slots get no operation, and some operations may change nothing.
        self.assertTrue(((views == image).all(axis=(2, 3, 4)).sum(axis=1) >= 30).all())
        rows, columns = gray[cut].any(axis=2), gray[cut].any(axis=1)
        np.testing.assert_array_equal(gray[cut], rows[:, :, None] & columns[:, None, :])
        whole = ~(rows[:, [0, -1]].any(axis=1) | columns[:, [0, -1]].any(axis=1))
        sizes = rows[whole].sum(axis=1)
        np.testing.assert_array_equal(sizes, columns[whole].sum(axis=1))
        self.assertContainsSubset(set(sizes), set(range(2, 20, 2)))
        self.assertGreater(len(set(sizes)), 5)


def on_rgba(name, image, magnitude, place, color):
    """Applies an operation to an RGBA image, as the code of FixMatch and UDA does."""
    coefficients = {
        "shear_x": (1, magnitude, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, magnitude, 1, 0),
        "translate_x": (1, 0, magnitude * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, magnitude * image.height),
    }
    if name in coefficients:
        return image.transform(image.size, Image.Transform.AFFINE, coefficients[name])
    if name == "rotate":
        return image.rotate(magnitude)
    if name == "cutout":
        half = round(magnitude * image.width) // 2
        left, top = (max(0, center - half) for center in place)
        box = (left, top, min(image.width, place[0] + half), min(image.height, place[1] + half))
        image.paste((*color, 0), box)
        return image
    if name in ("brightness", "color", "contrast", "sharpness", "identity"):
        return PILLOW[name](image, magnitude)
    operation = {**PILLOW, "invert": lambda image, _: ImageOps.invert(image)}[name]
    return operation(image.convert("RGB"), magnitude).convert("RGBA")


def pairs_on_rgba(images, pairs, magnitudes, places, color):
    """Returns the images after two operations each, transparent pixels as gray."""
    results = []
    for image, pair, place in zip(images, pairs, places, strict=True):
        rgba = Image.fromarray(image).convert("RGBA")
        for name in pair:
            rgba = on_rgba(name, rgba, magnitudes[name], place, color)
        pixels = np.array(rgba)
        results.append(np.where(pixels[..., 3:] == 0, GRAY, pixels[..., :3]))
    return np.stack(results)


def pairs_by_policy(policy, images, magnitudes, places=None):
    """Draws for image `k * i + j`, of k * k, the i-th and then the j-th of the k operations.

    Args:
        policy: Name of a policy of two draws, each operation applied with probability 1/2.
        images: Array of shape `(k * k, height, width, channels)`.
        magnitudes: From operation to its only magnitude.
        places: Optional `(k * k, 2)`, column and row of the center of a cutout.
    """
    k = len(magnitudes)
    rules = dataclasses.replace(
        augment.RAND_AUGMENT[policy],
        magnitudes={name: (magnitudes[name],) for name in augment.RAND_AUGMENT[policy].magnitudes},
    )
    # As many more images get no operation. Image i of the batch is in this slot of a draw:
    slot = np.arange(2 * k * k)
    slots = np.stack([slot, slot])
    slots[1, : k * k] = slot[: k * k].reshape(k, k).T.ravel()
    uniform = np.zeros((4, 2, 2 * k * k))
    uniform[0] = slots / slot.size
    if places is not None:
        centers = (np.array(places).T[::-1] + 0.5) / np.array(images.shape[1:3])[:, None]
        for draw in range(2):
            uniform[2:, draw, slots[draw, : k * k]] = centers
    batch = np.concatenate([images, images]).astype("float32")
    uniform = uniform[: 4 if "cutout" in magnitudes else 2]
    with (
        mock.patch.dict(augment.RAND_AUGMENT, {policy: rules}),
        fixed_uniform(*uniform),
    ):
        return numpy(augment.rand_augment(batch, None, policy=policy))[: k * k]


class TransparencyTest(parameterized.TestCase):
    @parameterized.product(policy=["google_code", "uda"], gray_images=[False, True])
    def test_equals_pillow_for_every_pair_of_operations(self, policy, gray_images):
        levels = augment.RAND_AUGMENT[policy].magnitudes
        rng = np.random.default_rng(1)
        for _ in range(2):
            magnitudes = {name: rng.choice(values) for name, values in levels.items()}
            pairs = list(itertools.product(magnitudes, magnitudes))
            images = photographs()[np.arange(len(pairs)) % 72]
            color = (125, 122, 113)
            if gray_images:
                images, color = gray(images).repeat(3, axis=-1), (122, 122, 122)
            places = rng.integers(0, 32, (len(pairs), 2)).tolist()
            expected = pairs_on_rgba(images, pairs, magnitudes, places, color)
            if gray_images:
                images, expected = images[..., :1], expected[..., :1]
            result = pairs_by_policy(policy, images, magnitudes, places)
            for pair, of_pillow, ours in zip(pairs, expected, result, strict=True):
                np.testing.assert_array_equal(ours, of_pillow, err_msg=str(pair))

    def test_a_transparent_pixel_by_hand(self):
        magnitudes = dict.fromkeys(augment.RAND_AUGMENT["uda"].magnitudes, 0.5)
        # A pixel to the left, and a square of 2 pixels at the lower right corner.
        magnitudes.update(translate_x=0.25, posterize=4, solarize=128, cutout=0.5)
        images = np.full((15 * 15, 4, 4, 3), 200)
        views = pairs_by_policy("uda", images, magnitudes, [(3, 3)] * len(images))
        views = dict(zip(itertools.product(magnitudes, magnitudes), views.tolist(), strict=True))
        for first, second, expected in (
            ("translate_x", "translate_x", [127, 127, 127]),
            ("translate_x", "brightness", [127, 127, 127]),
            ("translate_x", "cutout", [127, 127, 127]),
            ("translate_x", "invert", [255, 255, 255]),
            ("translate_x", "posterize", [0, 0, 0]),
            ("translate_x", "solarize", [0, 0, 0]),
            ("translate_x", "equalize", [0, 0, 0]),  # does not change an image this small
            ("invert", "translate_x", [127, 127, 127]),
            ("cutout", "contrast", [127, 127, 127]),
            ("cutout", "translate_x", [127, 127, 127]),
            ("cutout", "invert", [130, 133, 142]),
            ("cutout", "posterize", [112, 112, 112]),
        ):
            self.assertEqual(views[first, second][3][3], expected, (first, second))
        # The mean is 150, of 12 pixels of 200 and 4 that are black.
        self.assertEqual(views["translate_x", "contrast"][0][0], [175, 175, 175])


class StrongViewTest(parameterized.TestCase):
    @parameterized.parameters(
        ("google_code", False), ("paper", False), ("torchssl", True), ("usb", False), ("uda", True)
    )
    def test_the_weak_view_is_first_or_last(self, policy, is_last):
        calls = []

        def record(name):
            def call(images, seed, **kwargs):
                calls.append((name, kwargs))
                return images + 1

            return mock.patch.object(augment_views, name, call)

        with record("weak_view"), record("rand_augment"), record("cutout"):
            views = augment.strong_view(
                np.zeros((2, 32, 48, 3)), None, policy=policy, flip=False, max_shift=3
            )
        np.testing.assert_array_equal(views, 3)
        names = [name for name, _ in calls]
        strong = ["rand_augment", "cutout"]
        self.assertEqual(names, [*strong, "weak_view"] if is_last else ["weak_view", *strong])
        arguments = dict(calls)
        self.assertEqual(arguments["weak_view"], {"flip": False, "max_shift": 3, "crop_area": None})
        self.assertEqual(arguments["rand_augment"], {"policy": policy})
        torchssl = policy in ("torchssl", "usb")  # whose side is a share of the width
        low = 16 if policy in ("google_code", "uda") else 0
        high = 24 if torchssl else 16
        self.assertEqual(arguments["cutout"], {"size": (low, high), "torchssl": torchssl})

    def test_compiled_half_precision_equals_eager_uint8(self):
        images = photographs()[:30]
        seed = keras.random.SeedGenerator(5)
        view = functools.partial(augment.strong_view, seed=seed)
        states = [numpy(seed.state)]

        # TensorFlow's generator returns other numbers under XLA.
        def uniform(shape, dtype, seed):
            seed.next()
            return ops.convert_to_tensor(np.random.default_rng(shape[-1]).random(shape), dtype)

        with mock.patch.object(keras.random, "uniform", uniform):
            eager = view(images)
            states.append(numpy(seed.state))
            seed.state.assign(states[0])
            self.addCleanup(keras.config.set_floatx, "float32")
            keras.config.set_floatx("float16")
            half = compiled(view, seed)(images.astype("float16"))
        self.assertEqual(keras.backend.standardize_dtype(half.dtype), "float32")
        np.testing.assert_array_equal(numpy(half), numpy(eager))
        self.assertGreater(np.mean(numpy(eager) != images), 0.2)
        np.testing.assert_array_equal(numpy(seed.state), states[1])
        self.assertGreater(np.abs(states[1] - states[0]).max(), 0)

    @parameterized.product(policy=augment.POLICIES)
    @pytest.mark.slow
    def test_digits_stay_in_range(self, policy):
        seed = keras.random.SeedGenerator(5)
        view = compiled(lambda x: augment.strong_view(x, seed, policy=policy), seed)
        images = digits(45).astype("float32")
        first, second = numpy(view(images)), numpy(view(images))
        self.assertEqual((first.shape, first.dtype), (images.shape, "float32"))
        self.assertBetween(first.min(), 0, 255)
        self.assertBetween(first.max(), 0, 255)
        np.testing.assert_array_equal(first, np.floor(first))
        self.assertGreater(np.mean(first != images), 0.2)
        self.assertGreater(np.mean(first != second), 0.2)

    def test_cutout_is_gray_and_of_the_policy_size(self):
        seed = keras.random.SeedGenerator(2)
        images = np.full((56, 40, 48, 3), 255, "uint8")
        same = lambda images, *_, **__: images  # noqa: E731
        # A weak view that comes last may mirror the square at the border.
        with (
            mock.patch.object(augment_views, "rand_augment", same),
            mock.patch.object(augment_views, "weak_view", same),
        ):
            views = {
                p: numpy(augment.strong_view(images, seed, policy=p)) for p in augment.POLICIES
            }
        np.testing.assert_array_equal(views.pop("lsa"), images)
        for policy, view in views.items():
            torchssl = policy in ("torchssl", "usb")
            fill = [114, 123, 125] if torchssl else [GRAY]
            self.assertCountEqual(np.unique(view), [*fill, 255])
            heights = (view < 255).any(axis=(2, 3)).sum(axis=1)
            fixed = policy in ("google_code", "uda")
            self.assertEqual(heights.max() == 20, fixed)
            self.assertEqual(heights.min() < 10, not fixed)


class CutoutTest(parameterized.TestCase):
    def test_square_is_uniform_and_clipped(self):
        views = many_views(
            lambda images, seed: augment.cutout(images, seed, size=16, fill=7),
            np.full((32, 32, 3), 255),
            batch=640,
            repeats=4,
        ).reshape(-1, 32, 32, 3)
        hole = (views == 7).all(axis=-1)
        np.testing.assert_array_equal(views[~hole], 255)
        rows, columns = hole.any(axis=2), hole.any(axis=1)
        np.testing.assert_array_equal(hole, rows[:, :, None] & columns[:, None, :])
        squares = {}
        for center in range(32):
            extent = np.zeros(32, bool)
            extent[max(0, center - 8) : center + 8] = True
            squares[extent.tobytes()] = center
        for extents in (rows, columns):
            centers = [squares[extent.tobytes()] for extent in extents]
            self.assertLess(chi_square(np.bincount(centers, minlength=32)), 4)
        self.assertLess(abs(np.corrcoef(rows.sum(axis=1), columns.sum(axis=1))[0, 1]), 0.08)

    @parameterized.parameters((32, 32), (40, 64), (64, 24))
    def test_torchssl_draws_as_pillow(self, height, width):
        count = 400
        rng = np.random.default_rng(3)
        row, column, share = rng.integers(0, 2**20, (3, count)) / 2**20  # exact in float32
        images = np.full((count, height, width, 3), 200, "uint8")
        expected = []
        for image, x, y, size in zip(images, column * width, row * height, share * width / 2):
            image = Image.fromarray(image)
            left, top = max(0, x - size / 2), max(0, y - size / 2)
            box = (int(left), int(top), int(int(left) + size), int(int(top) + size))
            ImageDraw.Draw(image).rectangle(box, fill=(125, 123, 114))
            expected.append(np.array(image))
        with fixed_uniform(row, column, share):
            cut = augment.cutout(images, None, size=(0, width / 2), torchssl=True)
            of_gray = augment.cutout(images[..., :1], None, size=(0, width / 2), torchssl=True)
        np.testing.assert_array_equal(numpy(cut), expected)
        np.testing.assert_array_equal(
            numpy(of_gray), np.where(np.stack(expected)[..., :1] == 200, 200, 123)
        )

    @parameterized.parameters(
        # Row and column of the center, and the side; rows and columns that are filled.
        (0, 0, 4.0, (0, 4), (0, 4)),  # the corner moves inside and no pixel is lost
        (7, 4, 4.0, (5, 7), (2, 6)),  # clipped at the lower border
        (4, 4, 0.25, (3, 3), (3, 3)),  # never empty
        (4, 5, 3.75, (2, 5), (3, 6)),
    )
    def test_torchssl_by_hand(self, row, column, size, rows, columns):
        with fixed_uniform([row / 8], [column / 8], [0.0]):
            image = augment.cutout(np.zeros((1, 8, 8, 1)), None, size=(size, 9), torchssl=True)
        filled = numpy(image)[0, ..., 0] == 123
        expected = np.zeros((8, 8), bool)
        expected[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
        np.testing.assert_array_equal(filled, expected)

    @parameterized.parameters(("torchssl", 85.5), ("paper", 64.1))
    def test_mean_area_of_32x32(self, policy, expected):
        same = lambda images, *_, **__: images  # noqa: E731
        with mock.patch.multiple(augment_views, rand_augment=same, weak_view=same):
            view = functools.partial(augment.strong_view, policy=policy)
            views = many_views(view, np.full((32, 32, 3), 255), batch=2000, repeats=4)
        area = (views != 255).any(axis=-1).sum(axis=(2, 3)).mean()
        self.assertAlmostEqual(area, expected, delta=3)

    def test_interval_of_sizes(self):
        views = many_views(
            lambda images, seed: augment.cutout(images, seed, size=(0, 16)),
            np.full((32, 32, 1), 255),
            batch=1000,
            repeats=1,
        )
        heights = (views[0] == GRAY).any(axis=(2, 3)).sum(axis=1)
        self.assertEqual(heights.max(), 15)
        self.assertLess(chi_square(np.bincount(heights)[:8]), 4)


class ColorJitterTest(parameterized.TestCase):
    @parameterized.parameters("photographs", "gray")
    def test_equals_pillow_in_this_order(self, kind):
        images = photographs() if kind == "photographs" else gray(photographs())
        uniform = np.random.default_rng(0).integers(0, 9, (4, len(images))) / 8
        uniform[3] = 0.5  # keeps the hue
        with fixed_uniform(*uniform):
            result = numpy(augment.color_jitter(images, None, strength=0.5))
        factors = 0.5 + uniform  # 1 - 0.5 at 0, 1 + 0.5 at 1
        for first, second, equal in (
            ("brightness", "contrast", True),
            ("contrast", "brightness", False),
        ):
            order = {"brightness": 0, "contrast": 1}
            expected = images
            for name in (first, second):
                expected = pillow(name, expected, factors[order[name]])
            if kind == "photographs":
                expected = pillow("color", expected, factors[2])
            self.assertEqual((result == expected).all(), equal)

    @parameterized.parameters(0.0, 0.125, 0.75, 1.0)
    def test_hue_turns_as_of_colorsys(self, uniform):
        images = photographs(count=6)
        with fixed_uniform([0.5], [0.5], [0.5], [uniform]):
            result = numpy(augment.color_jitter(images, None, max_turn=0.25))
        turn = 0.5 * uniform - 0.25
        expected = []
        for pixel in images.reshape(-1, 3) / 255:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
        expected = 255 * np.array(expected).reshape(images.shape)
        self.assertLess(np.abs(result - expected).max(), 1)
        self.assertGreater(np.abs(result - images).max(), 20)

    def test_a_third_of_the_circle_turns_red_into_green(self):
        red = np.array([255, 0, 0]).reshape(1, 1, 1, 3)
        with fixed_uniform([0.5], [0.5], [0.5], [1.0]):
            result = numpy(augment.color_jitter(red, None, max_turn=1 / 3))
        self.assertEqual(result.ravel().tolist(), [0, 255, 0])  # the other way around it is blue

    def test_no_strength_is_the_image_and_gray_stays_gray(self):
        seed = keras.random.SeedGenerator(3)
        images = photographs()
        same = augment.color_jitter(images, seed, strength=0.0, max_turn=0.0)
        np.testing.assert_array_equal(numpy(same), images)
        grays = np.repeat(gray(images), 3, axis=-1)
        views = numpy(augment.color_jitter(grays, seed))
        np.testing.assert_array_equal(views, views[..., :1].repeat(3, axis=-1))
        self.assertGreater(np.mean(views != grays), 0.5)

    def test_factors_are_uniform_in_1_plus_minus_the_strength_for_each_image(self):
        # Contrast does not change a constant image.
        view = many_views(augment.color_jitter, np.full((2, 2, 1), 100), 1000, 2)[..., 0, 0, 0]
        self.assertBetween(view.min(), 60, 62)
        self.assertBetween(view.max(), 137, 139)
        histogram, _ = np.histogram(view, 8, (60, 140))
        self.assertLess(chi_square(histogram), 4)
        self.assertLess(abs(np.corrcoef(*view)[0, 1]), 0.15)

    def test_compiled_equals_eager(self):
        images = photographs()
        uniform = np.random.default_rng(1).random((4, len(images)))
        with fixed_uniform(*uniform):
            view = functools.partial(augment.color_jitter, seed=None)
            eager, graph = numpy(view(images)), compiled(view)(images.astype("float16"))
        self.assertEqual(keras.backend.standardize_dtype(graph.dtype), "float32")
        self.assertLessEqual(np.abs(numpy(graph) - eager).max(), 1)  # of rounding in HSV
        self.assertGreater(np.mean(numpy(graph) == eager), 0.999)
        np.testing.assert_array_equal(eager, np.clip(np.floor(eager), 0, 255))


def mixed(size, calls=1, **kwargs):
    """Mixes `calls` batches of `size` images, each of a class of its own, pixel = 3 * class."""
    seed = keras.random.SeedGenerator(11)
    classes = np.eye(size, dtype="float32")
    images = 3 * np.arange(size, dtype="float32").reshape(size, 1, 1, 1)
    mix = lambda images: augment.mixup(images, classes, seed, **kwargs)  # noqa: E731
    return [[numpy(value) for value in mix(images)] for _ in range(calls)]


def own_shares(soft_labels):
    """Returns the shares of images that were not mixed with themselves."""
    own = np.diag(soft_labels)
    return own[(soft_labels > 0).sum(axis=1) > 1]


class MixupTest(parameterized.TestCase):
    @parameterized.parameters((0.5, 0.125), (0.75, 0.1), (1.0, 1 / 12))
    def test_shares_have_the_mean_and_variance_of_beta(self, alpha, variance):
        shares = [own_shares(m[1]) for m in mixed(1000, 4, alpha=alpha, per_image=True)]
        shares = np.concatenate(shares)
        self.assertGreater(len(shares), 3900)
        self.assertAlmostEqual(shares.mean(), 0.5, delta=0.025)
        self.assertAlmostEqual(shares.var(), variance, delta=0.006)
        self.assertBetween(shares.min(), 0, 0.01)

    @parameterized.parameters(
        # Quarters of Beta(1, 1), of Beta(1/2, 1/2), which is sin^2(pi u / 2), and of Beta(2, 2),
        # where 3 x^2 - 2 x^3 is 1/4.
        (1.0, 0.25, False, 0.25),
        (1.0, 0.25, True, 0.75),
        (0.5, 0.25, False, 0.146447),
        (0.5, 0.25, True, 0.853553),
        (2.0, 0.25, False, 0.326352),
        (2.0, 0.75, True, 0.673648),
    )
    def test_share_by_hand(self, alpha, uniform, keep_larger, expected):
        images, labels = np.zeros((2, 1, 1, 1)), np.eye(2)
        # The order of partners is that of the second row: both meet the other one.
        with mock.patch.object(
            keras.random,
            "uniform",
            lambda *_, **__: ops.convert_to_tensor([[uniform, 0.9], [0.8, 0.3]]),
        ):
            _, soft = augment.mixup(images, labels, None, alpha=alpha, keep_larger=keep_larger)
        share = expected
        np.testing.assert_allclose(soft, [[share, 1 - share], [1 - share, share]], atol=1e-5)

    @parameterized.product(per_image=[False, True], keep_larger=[False, True])
    def test_images_and_labels_have_the_same_partner_and_share(self, per_image, keep_larger):
        batches = mixed(64, 12, alpha=0.75, per_image=per_image, keep_larger=keep_larger)
        firsts = []
        for images, soft_labels in batches:
            np.testing.assert_allclose(images.ravel(), soft_labels @ (3 * np.arange(64)), rtol=1e-4)
            np.testing.assert_allclose(soft_labels.sum(axis=1), 1, atol=1e-5)
            # Each image is the partner of exactly one.
            self.assertLessEqual((soft_labels > 0).sum(axis=0).max(), 2)
            shares = own_shares(soft_labels)
            self.assertEqual(np.ptp(shares) < 1e-6, not per_image)
            self.assertTrue((shares >= 0.5).all() or not keep_larger)
            firsts.append(shares[0])
        self.assertGreater(np.ptp(firsts), 0.1)
        self.assertEqual(min(firsts) >= 0.5, keep_larger)
        # Partners differ from those of the previous batch.
        self.assertGreater(np.mean((batches[0][1] > 0) != (batches[1][1] > 0)), 0.01)

    def test_alpha_0_mixes_nothing(self):
        images, soft_labels = mixed(5, alpha=0, keep_larger=True)[0]
        np.testing.assert_array_equal(images.ravel(), 3 * np.arange(5))
        np.testing.assert_array_equal(soft_labels, np.eye(5))


class WeakViewTest(parameterized.TestCase):
    @parameterized.parameters(
        ("photographs", True, None, 4),
        ("photographs", False, 2, 2),
        ("wide", True, 0, 0),
        ("digits", True, None, 1),
        ("digits", False, 5, 5),
    )
    def test_views_are_the_crops_of_the_padded_image(self, kind, flip, max_shift, reach):
        image = {"photographs": photographs(), "digits": digits(1)}.get(
            kind, photographs(12, 20, 6)
        )[0]
        height, width, _ = image.shape
        crops = {}
        for mirrored in (False, True) if flip else (False,):
            padded = np.pad(
                image[:, ::-1] if mirrored else image,
                ((reach, reach), (reach, reach), (0, 0)),
                mode="reflect",
            )
            for offset in np.ndindex(2 * reach + 1, 2 * reach + 1):
                crop = padded[offset[0] :, offset[1] :][:height, :width]
                crops[crop.tobytes()] = (mirrored, *offset)
        self.assertEqual(len(crops), (1 + flip) * (2 * reach + 1) ** 2)
        views = many_views(
            lambda images, seed: augment.weak_view(images, seed, flip=flip, max_shift=max_shift),
            image,
            batch=500,
            repeats=6,
        ).reshape(-1, height, width, image.shape[-1])
        seen = collections.Counter(crops[view.astype("uint8").tobytes()] for view in views)
        self.assertEqual(len(seen), len(crops))
        if len(crops) > 1:
            self.assertLess(chi_square(list(seen.values())), 4)

    def test_max_shift_is_checked(self):
        for max_shift in (-1, 8):
            with self.assertRaisesRegex(ValueError, f"Received: max_shift={max_shift}"):
                augment.weak_view(digits(2), keras.random.SeedGenerator(0), max_shift=max_shift)

    def test_seed_decides_in_eager_and_in_graph(self):
        views = []
        for number, wrap in [(1, lambda view, *_: view), (1, compiled), (2, compiled)]:
            seed = keras.random.SeedGenerator(number)
            view = wrap(functools.partial(augment.weak_view, seed=seed), seed, False)
            views.append([numpy(view(photographs().astype("float32"))) for _ in range(2)])
        np.testing.assert_array_equal(views[0], views[1])
        self.assertGreater(np.mean(views[0][0] != views[2][0]), 0.5)
        self.assertGreater(np.mean(views[0][0] != views[0][1]), 0.5)


class AlternatingFlipTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_every_other_epoch_and_half_of_each(self, jit):
        ramp = np.arange(3, dtype="float32").reshape(1, 1, 3, 1)
        images = np.repeat(ramp, 4000, axis=0)
        indices = np.arange(40_000, 44_000, dtype="int32")
        run = compiled if jit else (lambda function: function)
        flipped = []
        for epoch in range(4):
            view = run(lambda x: augment.alternating_flip(x, indices, epoch))(images)  # noqa: B023
            view = numpy(view)
            flipped.append(view[:, 0, 0, 0] == 2)
            np.testing.assert_array_equal(view[:, 0, 1, 0], 1)
            self.assertAlmostEqual(np.mean(flipped[-1]), 0.5, delta=0.03)
        for before, after in zip(flipped, flipped[1:], strict=False):
            np.testing.assert_array_equal(before, ~after)
        # Neighbors in the data set, often of the same class, are not flipped together.
        self.assertAlmostEqual(np.mean(flipped[0][1:] == flipped[0][:-1]), 0.5, delta=0.03)
        epochs = np.arange(4000, dtype="int32") % 4
        view = numpy(augment.alternating_flip(images, indices, epochs))
        np.testing.assert_array_equal(view[:, 0, 0, 0] == 2, np.choose(epochs, np.array(flipped)))

    def test_bits_are_the_same_on_every_backend(self):
        images = np.repeat(np.arange(2, dtype="float32").reshape(1, 1, 2, 1), 10, axis=0)
        view = numpy(augment.alternating_flip(images, np.arange(10), 0))
        self.assertEqual(list(view[:, 0, 0, 0]), [0, 1, 0, 1, 1, 1, 0, 0, 1, 1])


class RandomResizedCropTest(parameterized.TestCase):
    def test_resizing_is_pillows(self):
        images = np.random.default_rng(0).integers(0, 256, (5, 24, 31, 3)).astype("uint8")
        boxes = np.array(  # left, columns, top, rows
            [[0, 31, 0, 24], [4, 7, 3, 10], [1, 30, 5, 17], [9, 20, 10, 1], [30, 1, 2, 22]]
        )
        left, columns, top, rows = (ops.cast(part, "float32") for part in boxes.T)
        made = augment_views._resized(ops.cast(images, "float32"), left, columns, axis=2)
        made = ops.convert_to_numpy(augment_views._resized(made, top, rows, axis=1))
        for image, ours, (x, width, y, height) in zip(images, made, boxes):
            crop = Image.fromarray(image).crop((x, y, x + width, y + height))
            theirs = np.array(crop.resize((31, 24), Image.Resampling.BILINEAR), "float32")
            difference = np.abs(ours - theirs)
            self.assertLessEqual(difference.max(), 1)  # ties may be rounded either way
            self.assertLess((difference > 0).mean(), 0.03)

    @parameterized.parameters(((1.0, 1.0), 1.0), ((0.25, 0.25), 0.25))
    def test_the_area_is_as_said(self, area, expected):
        # A ramp shows by its slope how much of the side was taken.
        ramp = np.tile(np.arange(64, dtype="float32")[:, None, None], (40, 1, 64, 1))
        for axis, images in ((1, ramp), (2, ramp.swapaxes(1, 2))):
            seed = keras.random.SeedGenerator(1)
            made = augment_views.random_resized_crop(
                images, seed, flip=False, area=area, ratio=(1, 1)
            )
            made = ops.convert_to_numpy(made)
            spans = (made.max((1, 2, 3)) - made.min((1, 2, 3)) + 1) / 64
            np.testing.assert_allclose(spans, expected**0.5, atol=0.02)
            self.assertEqual(len(np.unique(made.min((1, 2, 3)))) > 1, area != (1.0, 1.0), axis)

    def test_flip_mirrors_about_half_of_the_images(self):
        images = np.random.default_rng(0).integers(0, 256, (200, 4, 6, 1)).astype("float32")
        seed = keras.random.SeedGenerator(0)
        made = augment_views.random_resized_crop(images, seed, area=(1, 1), ratio=(1.5, 1.5))
        made = ops.convert_to_numpy(made)
        same = (made == images).all((1, 2, 3))
        mirrored = (made == images[:, :, ::-1]).all((1, 2, 3))
        self.assertTrue((same | mirrored).all())
        self.assertBetween(mirrored.mean(), 0.4, 0.6)

    def test_a_crop_that_never_fits_is_central(self):
        images = np.broadcast_to(np.arange(12, dtype="float32")[None, None, :, None], (2, 2, 12, 1))
        seed = keras.random.SeedGenerator(0)
        # All of the area at a ratio of 1 would be taller than the image: 2 by 2 in the middle.
        made = augment_views.random_resized_crop(
            images, seed, flip=False, area=(1, 1), ratio=(1, 1)
        )
        self.assertEqual((float(ops.min(made)), float(ops.max(made))), (5, 6))

    def test_strong_views_of_crops(self):
        images = np.full((2, 96, 96, 3), 9, "uint8")
        seed = keras.random.SeedGenerator(0)
        with mock.patch.object(augment_views, "rand_augment", lambda images, seed, policy: images):
            made = augment_views.strong_view(images, seed, policy="paper", crop_area=(0.2, 1))
        self.assertEqual(made.shape, (2, 96, 96, 3))


if __name__ == "__main__":
    absltest.main()
