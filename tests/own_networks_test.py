# SPDX-License-Identifier: Apache-2.0
"""Networks that users bring: files, functions, and those of `keras.applications`."""

import os
import sys
from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import layers, ops

from ssl_noisy import contract, networks
from ssl_noisy.errors import UserError
from ssl_noisy.networks import applications
from ssl_noisy.runs import checkpoint
from ssl_noisy.runs.training import make_learner
from ssl_noisy.settings import Settings

SHAPE = (8, 8, 1)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype("uint8")


def body(x):
    x = layers.Conv2D(4, 3, strides=2, name="block1_conv")(layers.Rescaling(1 / 255)(x))
    x = layers.ReLU()(layers.BatchNormalization(name="block1_bn")(x))
    x = layers.Conv2D(4, 1, name="block10_conv")(x)
    return layers.Dropout(0.5)(layers.Flatten()(x))


def ending(kind, num_classes):
    """Returns a model whose last layers are of a kind, and the dense layer among them."""
    inputs = keras.Input(SHAPE)
    x, dense = body(inputs), layers.Dense(num_classes)
    if kind == "linear":
        return keras.Model(inputs, dense(x)), dense
    if kind == "dense_softmax":
        dense = layers.Dense(num_classes, "softmax")
        return keras.Model(inputs, dense(x)), dense
    if kind == "softmax_layer":
        return keras.Model(inputs, layers.Softmax()(dense(x))), dense
    if kind == "operation":
        return keras.Model(inputs, ops.softmax(dense(x))), dense
    if kind == "sequential":
        parts = [layers.Flatten(), dense, layers.Activation("softmax")]
        return keras.Sequential([keras.Input(SHAPE), *parts]), dense
    dense = layers.Dense(num_classes, "sigmoid")
    inner = keras.Sequential([keras.Input(x.shape[1:]), layers.Dense(6), dense])
    return keras.Model(inputs, inner(x)), dense


class FileCase(parameterized.TestCase):
    def save(self, model, name="mine.keras"):
        path = os.path.join(self.create_tempdir().full_path, name)
        model.save(path)
        return path


class FileTest(FileCase):
    @parameterized.parameters("linear", "dense_softmax", "softmax_layer", "operation", "sequential")
    def test_as_many_classes_keep_all_weights(self, kind):
        model, dense = ending(kind, 10)
        notes = []
        network = networks.build(self.save(model), SHAPE, 10, notes=notes)
        contract.check(network, SHAPE, 10)
        logits, expected = network(PIXELS), ops.convert_to_numpy(model(PIXELS))
        if kind != "linear":
            logits = ops.softmax(logits)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        for ours, theirs in zip(contract.head(network).get_weights(), dense.get_weights()):
            np.testing.assert_array_equal(ours, theirs)
        self.assertLen(notes, 0 if kind == "linear" else 1)

    @parameterized.parameters("linear", "softmax_layer", "sequential", "nested")
    def test_other_classes_get_a_new_last_layer(self, kind):
        model, _ = ending(kind, 7)
        notes = []
        network = networks.build(self.save(model), SHAPE, 10, notes=notes)
        contract.check(network, SHAPE, 10)
        self.assertEqual(contract.head(network).name, "logits")
        self.assertIn("mine.keras: replaced its last layer of 7 classes by one of 10", notes)
        before = [w for w in model.get_weights() if w.shape[-1:] != (7,)]
        after = [
            v.numpy()
            for v in network.variables
            if v.shape[-1:] != (10,) and v.name != "num_updates"
        ]
        after = [value for value in after if value.shape != (2,)]  # random states
        self.assertEqual([a.shape for a in after], [b.shape for b in before])
        for ours, theirs in zip(after, before):
            np.testing.assert_array_equal(ours, theirs)

    def test_features_get_a_last_layer(self):
        inputs = keras.Input((None, None, 1))  # images of any size
        model = keras.Model(inputs, layers.Conv2D(5, 3)(inputs / 255))
        notes = []
        network = networks.build(self.save(model), SHAPE, 3, notes=notes)
        self.assertEqual(network.input_shape, (None, *SHAPE))
        self.assertEqual(
            notes, ["mine.keras: added a new last layer of 3 classes to its 5 features"]
        )
        features = ops.convert_to_numpy(model(PIXELS)).mean((1, 2))
        kernel, bias = contract.head(network).get_weights()
        np.testing.assert_allclose(network(PIXELS), features @ kernel + bias, rtol=1e-4, atol=1e-5)
        self.assertEqual(contract.outputs_per_image(network), 64 + 6 * 6 * 5 + 5 + 3)

    def test_batch_norm_is_this_kits_and_forgets_in_short_trainings_too(self):
        model, _ = ending("linear", 10)
        model.get_layer("block1_bn").set_weights([np.full(4, i + 1.0) for i in range(4)])
        network = networks.build(
            self.save(model), SHAPE, 10, batch_norm_momentum=0.75, batch_norm_epsilon=0.5
        )
        norm = network.get_layer("block1_bn")
        self.assertIs(type(norm), networks.BatchNormalization)
        self.assertEqual((norm.momentum, norm.epsilon), (0.75, 0.5))
        norm(np.zeros((2, 1, 1, 4)), training=True)  # the first update keeps 2 / 11 of 3 and of 4
        np.testing.assert_allclose(norm.moving_mean, np.full(4, 2 / 11 * 3))
        np.testing.assert_allclose(norm.moving_variance, np.full(4, 2 / 11 * 4))
        copy = networks.portable(network).get_layer("block1_bn")
        self.assertIs(type(copy), layers.BatchNormalization)

    def test_adapted_normalization_is_kept_by_copies(self):
        normalization = layers.Normalization()
        normalization.adapt(PIXELS.astype("float32"))
        inputs = keras.Input(SHAPE)
        model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(normalization(inputs))))
        network = networks.build(self.save(model), SHAPE, 10)
        for made in (network, networks.portable(network)):
            np.testing.assert_allclose(made(PIXELS), model(PIXELS), rtol=1e-4, atol=1e-4)
        copy = contract.new_copy(network)  # with other weights, but the same statistics
        normalized = keras.Model(copy.inputs, copy.layers[1].output)(PIXELS)
        self.assertAlmostEqual(float(ops.std(normalized)), 1, delta=1e-3)

    def test_mistakes(self):
        inputs = keras.Input(SHAPE)
        flat = layers.Flatten()(inputs)
        linear = self.save(keras.Model(inputs, layers.Dense(10)(flat)))
        two = self.save(keras.Model(inputs, [layers.Dense(10)(flat), layers.Dense(3)(flat)]))
        code = layers.Lambda(lambda x: x / 2)(flat)
        unsafe = self.save(keras.Model(inputs, layers.Dense(10)(code)))
        damaged = self.create_tempfile("damaged.keras", "no zip file").full_path
        subclassed = toy.Subclassed(7)
        subclassed(PIXELS)
        for path, shape, message in (
            (linear, (12, 8, 1), "takes images of shape 8x8x1, .* 12x8x1. .*--image_size=8"),
            (linear, (8, 8, 3), "shape 8x8x1, but .* 8x8x3. Use images with as many channels"),
            (two, SHAPE, "must have one output.*with 2 outputs"),
            (unsafe, SHAPE, "cannot be loaded.*Lambda.*FILE.py:FUNCTION"),
            (damaged, SHAPE, "cannot be loaded"),
            (self.save(subclassed), SHAPE, "cannot be replaced.*7 outputs for 10 classes"),
            ("/no/such.keras", SHAPE, "There is no file /no/such.keras"),
        ):
            with self.assertRaisesRegex(UserError, message):
                networks.build(path, shape, 10)
        keras.config.set_dtype_policy("mixed_bfloat16")
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        with self.assertRaisesRegex(UserError, "no effect on .*saved as float32"):
            networks.build(linear, SHAPE, 10)


FUNCTIONS = """
import keras

def small(image_shape, num_classes):
    layers = [keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    return keras.Sequential(layers)

def seven(image_shape, num_classes):
    return small(image_shape, 7)

def nothing(image_shape, num_classes):
    return None

def broken(image_shape, num_classes):
    raise KeyError("of the user")

def one_argument(num_classes):
    return None
"""


class FunctionTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.file = os.path.join(self.folder, "their_networks.py")
        with open(self.file, "w") as file:
            file.write(FUNCTIONS)
        self.enter_context(mock.patch.object(sys, "path", [*sys.path, self.folder]))
        self.addCleanup(sys.modules.pop, "their_networks", None)

    def test_of_a_file_and_of_a_module(self):
        for place in (self.file, "their_networks"):
            network = networks.build(f"{place}:small", (4, 4, 3), 5)
            self.assertEqual(network.count_params(), 49 * 5)

    @parameterized.parameters(
        ("their_networks:smal", "no function 'smal'. Did you mean 'small'\\? It has: small, seven"),
        ("their_network:small", "There is no module 'their_network'"),
        ("their_networks.there:small", "There is no module 'their_networks.there'"),
        ("there.py:small", "There is no file there.py"),
        ("their_networks:one_argument", "two arguments.*Received: one_argument.num_classes."),
        ("their_networks:nothing", "must return a keras.Model. Received: a NoneType"),
        ("their_networks:seven", "their_networks:seven: .*task's 3 classes.*None, 7"),
    )
    def test_mistakes(self, name, message):
        with self.assertRaisesRegex(UserError, message):
            networks.build(name, SHAPE, 3)

    def test_errors_of_the_users_code_are_not_disguised(self):
        with self.assertRaises(KeyError):
            networks.build("their_networks:broken", SHAPE, 3)
        for text, error in (("import no_such_library", ModuleNotFoundError), ("1 +", SyntaxError)):
            path = self.create_tempfile(f"{error.__name__}.py", text).full_path
            with self.assertRaises(error):
                networks.check_there(f"{path}:small")


def small_architecture(include_top, weights, input_shape, name="small"):
    """Stands in for a member of `keras.applications`, which takes seconds to build."""
    if min(input_shape[:2]) < 6:
        raise ValueError(f"Input size must be at least 6x6; Received: {input_shape}")
    if weights == "imagenet":
        raise Exception("URL fetch failure on https://host/models/small_no_top.h5: None -- no net")
    inputs = keras.Input(input_shape)
    x = layers.Normalization(name="normalization")(inputs)
    x = layers.Conv2D(2, 3, name="block1_conv")(x)
    return keras.Model(inputs, layers.BatchNormalization(name="block1_bn")(x), name=name)


class ApplicationTest(FileCase):
    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(keras.applications, "VGG16", small_architecture))
        # Its module knows it too, as Keras's does.
        self.enter_context(mock.patch.object(keras.applications.vgg16, "VGG16", small_architecture))

    def test_all_architectures_are_there(self):
        self.assertContainsSubset({"ResNet50", "EfficientNetV2B0", "VGG16"}, applications.names())
        self.assertNotIn("Model", applications.names())

    @parameterized.parameters(
        ("MobileNetV2", [[-1, -1, -1], [1, -1, 0]]),
        ("DenseNet121", [[-2.1179, -2.0357, -1.8044], [2.2489, -2.0357, 0.4265]]),
        # Blue, green, red.
        ("ResNet50", [[-103.939, -116.779, -123.68], [128 - 103.939, -116.779, 255 - 123.68]]),
        ("EfficientNetB0", [[0, 0, 0], [255, 0, 128]]),
        ("MobileNetV3Small", [[0, 0, 0], [255, 0, 128]]),
    )
    def test_preprocessing_is_that_of_the_architecture(self, name, expected):
        pixels = np.array([[0, 0, 0], [255, 0, 128]], "uint8").reshape(2, 1, 1, 3)
        inputs = keras.Input((1, 1, 3))
        outputs = applications.preprocess(name, inputs)
        if outputs is inputs:
            outputs = layers.Identity()(inputs)
        path = self.save(keras.Model(inputs, outputs))
        made = keras.models.load_model(path)(pixels)
        atol = 0.005 if name == "MobileNetV2" else 1e-3  # 128 is nearly the middle
        np.testing.assert_allclose(ops.reshape(made, (2, 3)), expected, atol=atol)

    def test_gray_is_repeated_and_the_whole_is_saved(self):
        network = networks.build("keras:VGG16", SHAPE, 4, weights="none")
        contract.check(network, SHAPE, 4)
        color = keras.Model(network.inputs, network.get_layer("preprocessing").output)(PIXELS)
        expected = PIXELS.astype("float32") - [103.939, 116.779, 123.68]
        np.testing.assert_allclose(color, expected, rtol=1e-4, atol=1e-3)
        loaded = keras.models.load_model(self.save(networks.portable(network)))
        np.testing.assert_allclose(loaded(PIXELS), network(PIXELS), rtol=1e-3, atol=1e-4)
        self.assertEqual(contract.head(network).name, "logits")
        norm = next(x for x in contract.leaves(network) if x.name == "block1_bn")
        self.assertIs(type(norm), networks.BatchNormalization)
        self.assertEqual(float(norm.num_updates), 0)

    def test_weights_of_a_file(self):
        trained = small_architecture(False, None, (8, 8, 3))
        values = [np.full(w.shape, i + 2, w.dtype) for i, w in enumerate(trained.get_weights())]
        values[0][:], values[1][:] = [0.485, 0.456, 0.406], applications.DEVIATIONS
        trained.set_weights(values)
        path = os.path.join(self.create_tempdir().full_path, "small.weights.h5")
        trained.save_weights(path)
        network = networks.build("keras:VGG16", (8, 8, 3), 4, weights=path)
        found = {layer.name: layer for layer in contract.leaves(network)}
        np.testing.assert_array_equal(found["block1_conv"].get_weights()[0], values[3])
        # Keras's files of EfficientNets have deviations where variances belong.
        made = found["normalization"](np.array([[[[1, 1, 1]]]], "float32"))
        expected = (1 - values[0]) / np.array(applications.DEVIATIONS)
        np.testing.assert_allclose(ops.reshape(made, (3,)), expected, rtol=1e-4)
        other = self.create_tempfile("other.h5", "no file of weights").full_path
        with self.assertRaisesRegex(
            UserError, "cannot be loaded into keras:VGG16.*without the top"
        ):
            networks.build("keras:VGG16", (8, 8, 3), 4, weights=other)

    def test_mistakes(self):
        home = self.create_tempdir().full_path
        self.enter_context(mock.patch.dict(os.environ, {"KERAS_HOME": home}))
        for name, shape, message in (
            ("VGG16", (5, 8, 3), "at least 6x6. Received: 5x8. .*--image_size=6"),
            ("VGG16", (8, 8, 2), "1 or 3 channels"),
            ("VGG16", (8, 8, 3), f"{home}/models/small_no_top.h5 .*https://host/models/small_no_"),
            ("VGG61", (8, 8, 3), "no 'VGG61'. Did you mean 'keras:VGG1"),
        ):
            with self.assertRaisesRegex(UserError, message):
                networks.build(f"keras:{name}", shape, 4)


class FreezeTest(parameterized.TestCase):
    @parameterized.parameters(
        ("none", []),
        ("block1", ["block1_conv", "block1_bn"]),
        ("block10", ["block1_conv", "block1_bn", "block10_conv"]),
        ("backbone", ["block1_conv", "block1_bn", "block10_conv"]),
    )
    def test_layers_up_to_a_stage_are_frozen(self, part, expected):
        network, _ = ending("linear", 10)
        networks.freeze(network, part)
        frozen = [layer.name for layer in network.layers if layer.weights and not layer.trainable]
        self.assertEqual(frozen, expected)

    def test_frozen_batch_norm_normalizes_by_its_statistics(self):
        network = toy.network()
        norm = next(x for x in network.layers if isinstance(x, layers.BatchNormalization))
        norm.set_weights([*(np.full(8, i + 1.0) for i in range(4)), np.float32(5)])
        networks.freeze(network, "backbone")
        pixels = PIXELS.astype("float32")
        np.testing.assert_allclose(
            network(pixels, training=True), network(pixels, training=False), rtol=1e-5
        )
        np.testing.assert_array_equal(norm.moving_mean, np.full(8, 3.0))
        copy = contract.new_copy(network)  # as the second network of a method
        self.assertLen(copy.trainable_variables, 2)

    def test_another_name_lists_the_stages(self):
        network, _ = ending("linear", 10)
        with self.assertRaisesRegex(UserError, "Received: 'block2'. Stages.*: block1, block10.$"):
            networks.freeze(network, "block2")
        with self.assertRaisesRegex(UserError, "subclassed"):
            networks.freeze(toy.Subclassed(), "block1")


class RunTest(FileCase):
    """What a run makes of a network of the user."""

    def settings(self, model, method="supervised", **changes):
        arguments = {"batch_size": 4, "weak_augmentation": "none"}
        return Settings(
            method=method,
            network=model if isinstance(model, str) else self.save(model),
            method_arguments=arguments,
            **{"steps": 8, **changes},
        )

    def test_resumed_is_uninterrupted_with_dropout(self):
        model, _ = ending("dense_softmax", 7)
        settings = self.settings(model, freeze="block1", backbone_learning_rate_multiplier=0.5)
        task, _ = toy.task()
        whole = make_learner(settings, task)
        start = whole.network.get_weights()
        toy.fit(whole, steps=4)
        first = make_learner(settings, task)
        toy.fit(first, steps=2)
        folder = self.create_tempdir().full_path
        checkpoint.save(folder, first, {"step": 2})
        second = make_learner(settings, task)
        second.network.set_weights([w + 1 for w in second.network.get_weights()])
        checkpoint.restore(folder, second)
        toy.fit(second, steps=2, start=2)
        for ours, theirs in zip(toy.state(whole), toy.state(second), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        changed = [not np.array_equal(a, b) for a, b in zip(start, whole.network.get_weights())]
        frozen = [not v.trainable or "block1_" in v.path for v in whole.network.weights]
        self.assertEqual(changed, [not is_frozen for is_frozen in frozen])

    @parameterized.parameters(10, 7)
    def test_two_networks_start_from_the_file_with_other_heads(self, num_classes):
        model, _ = ending("linear", num_classes)
        learner = make_learner(self.settings(model, "co_teaching"), toy.task()[0])
        first, second = learner.networks
        for ours, theirs in zip(
            contract.backbone_variables(first), contract.backbone_variables(second), strict=True
        ):
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        kernels = [contract.head(network).get_weights()[0] for network in learner.networks]
        self.assertGreater(np.abs(kernels[0] - kernels[1]).max(), 0.01)

    def test_names_are_checked_and_paths_absolute(self):
        for changes, message in (
            ({"network": "keras:VGG61"}, "Did you mean"),
            ({"network": "wrn_28x2"}, "FILE.keras, module:function or FILE.py:function"),
            ({"network": "a.keras", "normalization": "dataset"}, "--normalization has no effect"),
            ({"network": "a:b", "batch_norm_momentum": 0.5}, "no flag of its own"),
            ({"network": "a.keras", "weights": "none"}, "--weights has no effect"),
            (
                {"freeze": "backbone", "backbone_learning_rate_multiplier": 0.1},
                "trains the last layer alone",
            ),
        ):
            with self.assertRaisesRegex(UserError, message):
                Settings(**changes)
        self.assertEqual(Settings(network="keras:VGG16").resolved().weights, "imagenet")
        self.assertIsNone(Settings().resolved().weights)
        for name, expected in (
            ("a.keras", "/here/a.keras"),
            ("a/b.py:c", "/here/a/b.py:c"),
            ("a.b:c", "a.b:c"),
            ("keras:VGG16", "keras:VGG16"),
            ("wrn_28_2", "wrn_28_2"),
        ):
            self.assertEqual(networks.absolute(name, "/here/{}".format), expected)


if __name__ == "__main__":
    absltest.main()
