# SPDX-License-Identifier: Apache-2.0
"""The recorder of your own `fit`: the numbers of the record, and what it refuses."""

import keras
import numpy as np
from absl.testing import absltest, parameterized
from keras import ops

import ssl_noisy
from ssl_noisy.errors import UserError
from ssl_noisy.labels import detection, record

NUM_EXAMPLES, NUM_CLASSES, BATCH = 20, 3, 8


def data(seed=0):
    """Returns inputs, which are the logits of `logits_model`, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, (NUM_EXAMPLES, NUM_CLASSES)).astype("float32")
    return x, rng.integers(0, NUM_CLASSES, NUM_EXAMPLES)


def logits_model(softmax=False):
    """Returns a model whose outputs are its inputs: its one weight matrix never changes."""
    inputs = keras.Input((NUM_CLASSES,))
    outputs = keras.layers.Dense(
        NUM_CLASSES,
        use_bias=False,
        kernel_initializer="identity",
        activation="softmax" if softmax else None,
    )(inputs)
    return keras.Model(inputs, outputs)


def recorder(**kwargs):
    return ssl_noisy.Recorder(NUM_EXAMPLES, num_classes=NUM_CLASSES, **kwargs)


def compiled(made, softmax=False, loss=None, **kwargs):
    model = made.watch(logits_model(softmax))
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    model.compile(keras.optimizers.SGD(0.0), loss, **kwargs)
    return model


def expected(passes, labels):
    """Returns the record of passes over all examples, each with the logits of that pass."""
    rows = record.initial(NUM_EXAMPLES, NUM_CLASSES)
    for logits in passes:
        rows = record.updated(rows, np.arange(NUM_EXAMPLES), labels, logits)
    return record.read(ops.convert_to_numpy(rows), labels)


class RecordTest(parameterized.TestCase):
    def assert_records(self, kept, wanted, rtol=1e-6):
        for name, values in wanted.items():
            np.testing.assert_allclose(kept[name], values, rtol=rtol, atol=1e-6, err_msg=name)

    def test_fit_on_arrays_is_the_record_and_the_area_of_the_calculator(self):
        made, (_, labels) = recorder(), data()
        model, aum = compiled(made, metrics=["accuracy"]), ssl_noisy.AUMCalculator(NUM_EXAMPLES)
        passes = [data(seed)[0] for seed in range(4)]
        for number, logits in enumerate(passes):
            # 20 examples are two full batches and one of four, in random order.
            model.fit(logits, labels, batch_size=BATCH, verbose=0)
            if number:  # the first margin does not count in a record
                aum.update(logits, labels, np.arange(NUM_EXAMPLES))
        kept = made.record()
        self.assert_records(kept, expected(passes, labels))
        np.testing.assert_allclose(kept["aum"], aum.values, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(made.given_labels, labels)
        probs = np.mean([ops.convert_to_numpy(ops.softmax(p)) for p in passes], axis=0)
        np.testing.assert_allclose(made.mean_probabilities(), probs, rtol=1e-5)

    @parameterized.parameters(
        dict(jit_compile=True),
        dict(steps_per_execution=2),
        dict(softmax=True),
        dict(one_hot=True),
        dict(column=True),
    )
    def test_every_way_of_training_gives_the_same_record(
        self, softmax=False, one_hot=False, column=False, **kwargs
    ):
        made, (logits, labels) = recorder(from_logits=not softmax), data()
        loss = keras.losses.CategoricalCrossentropy(from_logits=True) if one_hot else None
        model, given = compiled(made, softmax, loss, **kwargs), labels
        if one_hot:
            given = np.eye(NUM_CLASSES, dtype="float32")[labels]
        elif column:
            given = labels[:, None]
        model.fit(logits, given, batch_size=BATCH, epochs=2, verbose=0)
        kept, wanted = made.record(), expected([logits, logits], labels)
        self.assert_records(kept, wanted, rtol=1e-5)

    def test_half_precision_probabilities_have_a_floor(self):
        made = recorder(from_logits=False)
        probs = ops.cast(np.float32([[1, 0, 0]]), "float16")
        made(np.array([4]), np.array([1]), probs)
        self.assertAlmostEqual(made.record()["margin"][4], np.log(6e-8), places=4)

    def test_validation_data_is_not_recorded(self):
        made, (logits, labels) = recorder(), data()
        model = compiled(made)
        model.fit(logits, labels, batch_size=5, validation_split=0.25, epochs=2, verbose=0)
        model.fit(
            made.numbered(logits[:5], np.arange(10, 15)),
            labels[10:15],
            validation_data=(logits, labels),
            verbose=0,
        )
        model.evaluate(logits, labels, verbose=0)
        model.evaluate(made.numbered(logits), labels, verbose=0)
        observations = made.record()["observations"]
        self.assertEqual(observations.tolist(), [2] * 10 + [3] * 5 + [0] * 5)
        self.assertEqual(made.given_labels[15:].tolist(), [-1] * 5)
        np.testing.assert_allclose(model.predict(logits, verbose=0), logits)

    def test_a_generator_of_numbered_batches(self):
        made, (logits, labels) = recorder(), data()

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return 2

            def __getitem__(self, number):
                chosen = np.array([[3, 5, 3], [7, -1, 19]][number])
                return {"inputs": logits[chosen], "position": chosen}, labels[chosen]

        compiled(made).fit(Batches(), verbose=0, shuffle=False)
        counts = np.zeros(NUM_EXAMPLES, int)
        counts[[3, 5, 7, 19]] = 2, 1, 1, 1
        self.assertEqual(made.record()["observations"].tolist(), counts.tolist())

    def test_in_a_compute_loss_of_ones_own(self):
        made, (logits, labels) = recorder(), data()

        @keras.saving.register_keras_serializable()
        class Mine(keras.Model):
            def __init__(self):
                super().__init__()
                self.recorder, self.network = made, logits_model()

            def call(self, inputs):
                return self.network(inputs["x"])

            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                if training:
                    self.recorder(x["number"], y, y_pred)
                return super().compute_loss(x, y, y_pred, sample_weight, training)

        model = Mine()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit({"x": logits, "number": np.arange(NUM_EXAMPLES)}, labels, verbose=0)
        self.assert_records(made.record(), expected([logits], labels), rtol=1e-5)
        with self.assertRaisesRegex(UserError, "Mine, with its own `compute_loss`"):
            recorder().watch(model)

    def test_a_subclassed_model_without_weights_and_without_a_training_argument(self):
        class Mine(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(NUM_CLASSES)

            def call(self, inputs):
                return self.dense(inputs)

        made, (logits, labels) = recorder(), data()
        model = made.watch(Mine())
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(logits, labels, verbose=0)
        self.assertEqual(made.record()["observations"].tolist(), [1] * NUM_EXAMPLES)

    def test_mixed_precision(self):
        made, (logits, labels) = recorder(), data()
        network = keras.Sequential(
            [keras.Input((NUM_CLASSES,)), keras.layers.Dense(NUM_CLASSES, dtype="mixed_float16")]
        )
        model = made.watch(network)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        before = network.get_weights()
        model.fit(logits, labels, batch_size=NUM_EXAMPLES, verbose=0)
        half = np.float16(logits) @ np.float16(before[0])
        np.testing.assert_allclose(
            made.record()["margin"], expected([half], labels)["margin"], atol=0.05
        )
        self.assertEqual(made.rows.dtype, "float32")

    def test_the_record_is_in_checkpoints_and_in_the_file_of_the_model(self):
        made, (logits, labels) = recorder(), data()
        model = compiled(made)
        model.fit(logits, labels, verbose=0)
        folder = self.create_tempdir().full_path
        model.save(f"{folder}/model.keras")
        model.save_weights(f"{folder}/model.weights.h5")
        loaded = keras.models.load_model(f"{folder}/model.keras")
        again = recorder()
        compiled(again).load_weights(f"{folder}/model.weights.h5")
        for one in (loaded.recorder, again):
            self.assert_records(one.record(), made.record(), rtol=0)
            np.testing.assert_array_equal(one.given_labels, labels)
        loaded.fit(logits, labels, verbose=0)
        self.assertEqual(loaded.recorder.record()["observations"].tolist(), [2] * NUM_EXAMPLES)
        made.reset()
        self.assertEqual(made.record()["observations"].sum(), 0)
        self.assertEqual(made.given_labels.tolist(), [-1] * NUM_EXAMPLES)


class IssuesTest(absltest.TestCase):
    def trained(self):
        made, (logits, labels) = recorder(), data()
        model = compiled(made)
        model.fit(made.numbered(logits[5:], np.arange(5, 20)), labels[5:], epochs=6, verbose=0)
        return made, labels

    def test_the_decision_and_the_file_are_those_of_a_run(self):
        made, labels = self.trained()
        decision = made.issues()
        self.assertEqual(decision.is_issue[:5].tolist(), [False] * 5)
        self.assertTrue(np.isnan(decision.label_quality[:5]).all())
        contradicted = made.record()["probability_margin"][5:] < 0
        self.assertEqual(decision.contradicted, contradicted.sum())
        self.assertGreater(decision.is_issue.sum(), 0)

        path = self.create_tempfile("examples.csv").full_path
        files = [f"{i}.jpg" for i in range(NUM_EXAMPLES)]
        made.to_csv(path, ids=100 + np.arange(NUM_EXAMPLES), files=files, class_names="abc")
        examples = detection.read_examples(path)
        self.assertEqual(examples["file"].tolist(), files[5:])
        self.assertEqual(examples["given_class"].tolist(), ["abc"[i] for i in labels[5:]])
        with self.assertRaisesRegex(UserError, "must have 3 names. Received: 2"):
            made.to_csv(path, class_names="ab")
        self.assertEqual(examples["index"].tolist(), list(range(105, 120)))
        np.testing.assert_array_equal(examples["given_label"], labels[5:])
        np.testing.assert_array_equal(examples["is_label_issue"], decision.is_issue[5:])
        np.testing.assert_array_equal(examples["label_quality"], decision.label_quality[5:])
        np.testing.assert_array_equal(examples["aum"], made.record()["aum"][5:])

    def test_given_labels_are_those_of_the_training(self):
        made, labels = self.trained()
        self.assertEqual(len(made.issues(labels).is_issue), NUM_EXAMPLES)
        wrong = labels.copy()
        wrong[[7, 9]] = (wrong[[7, 9]] + 1) % NUM_CLASSES
        with self.assertRaisesRegex(UserError, "Received: 2 others, the first at position 7"):
            made.issues(wrong)
        with self.assertRaisesRegex(UserError, r"each of the 20 examples. Received: shape \(3,\)"):
            made.issues(labels[:3])


class MistakeTest(parameterized.TestCase):
    def test_arguments(self):
        with self.assertRaisesRegex(UserError, "num_examples=0, num_classes=3"):
            ssl_noisy.Recorder(0, num_classes=3)
        with self.assertRaisesRegex(UserError, "num_examples=5, num_classes=1"):
            ssl_noisy.Recorder(5, num_classes=1)

    def test_networks(self):
        inputs = keras.Input((NUM_CLASSES,))
        two = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)])
        for made, network, message in (
            (recorder(), two, r"output_shape=\[\(None, 3\), \(None, 3\)\]"),
            (ssl_noisy.Recorder(5, 4), logits_model(), r"\(batch_size, 4\).*\(None, 3\)"),
            (recorder(), logits_model(softmax=True), "ends in a softmax. Pass `from_logits=False`"),
            (recorder(), "a model", "Received: str"),
        ):
            with self.assertRaisesRegex(UserError, message):
                made.watch(network)
        with self.assertRaisesRegex(UserError, "one output tensor.*Received: dict"):
            recorder()(np.arange(3), np.arange(3), {"a": np.eye(3)})
        with self.assertRaisesRegex(UserError, r"Received: labels of shape \(3, 2\)"):
            recorder()(np.arange(3), np.zeros((3, 2)), np.eye(3))

    def test_inputs_without_positions(self):
        model, (logits, labels) = compiled(recorder()), data()
        with self.assertRaisesRegex(UserError, "positions of their examples.*without them"):
            model.train_on_batch(logits, labels)
        with self.assertRaisesRegex(UserError, "expects arrays of 20 examples.*length 7"):
            model.fit(logits[:7], labels[:7])
        with self.assertRaisesRegex(UserError, r"integers in \[0, 20\), .* int64, 0 to 20"):
            model.recorder.numbered(logits[:2], np.array([0, 20]))

    @parameterized.parameters(
        ([0, 20, -2], [0, 0, 0], True, r"2 positions outside \[0, 20\), or -1"),
        ([0, 1, 2], [0, 3, -1], True, r"1 labels outside \[0, 3\), or -1"),
        ([4, 5, 4], [1, 1, 0], True, "1 changed labels of examples whose label was another one"),
        ([0, 1, 2], [0, 1, 2], False, "3 outputs that are no probabilities"),
    )
    def test_what_only_a_step_can_see(self, positions, labels, from_logits, message):
        made = recorder(from_logits=from_logits)
        if from_logits:
            made(np.array([4]), np.array([1]), np.eye(3, dtype="float32")[:1])
        made(np.array(positions), np.array(labels), 2 * np.eye(3, dtype="float32"))
        for read in (made.check, made.record, made.issues, made.mean_probabilities):
            with self.assertRaisesRegex(UserError, message):
                read()

    def test_the_first_epoch_with_a_mistake_is_the_last(self):
        made, (logits, labels) = recorder(), data()
        model, x = compiled(made), made.numbered(logits)
        x["position"] += 1
        epochs = []
        counted = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, _: epochs.append(epoch)
        )
        with self.assertRaisesRegex(UserError, "1 positions outside"):
            model.fit(x, labels, epochs=3, verbose=0, callbacks=counted)
        self.assertEqual(epochs, [0])


if __name__ == "__main__":
    absltest.main()
