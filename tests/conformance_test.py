# SPDX-License-Identifier: Apache-2.0
"""What every method must do. The methods come from the folder: a new one is tested here at once.

Each method has a test class of its own, so that its tests share one trained reference.
"""

import inspect
import os
import tempfile
from unittest import mock

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest
from keras import ops

from ssl_noisy import augment, contract, methods
from ssl_noisy.augment import interpolation
from ssl_noisy.augment import views as augment_views
from ssl_noisy.runs import checkpoint

STRONG = {name: getattr(augment_views, name) for name in ("rand_augment", "auto_augment")}
CONTRASTIVE = augment.contrastive_view
NUM_METHODS = 28  # raise it with each new file: an empty folder must not pass


class FolderTest(absltest.TestCase):
    def test_the_folder_is_what_is_tested(self):
        self.assertLen(methods.names(), NUM_METHODS)


class MethodTest(absltest.TestCase):
    """Base of one class for each method, which states `method`."""

    method = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        noise = dict.fromkeys(STRONG, toy.noise)
        cls.enterClassContext(mock.patch.multiple(augment_views, **noise))
        cls.enterClassContext(mock.patch.object(augment, "contrastive_view", toy.noise))
        # The reference, of which the tests below ask for the same numbers by other ways. What it
        # was after two steps is resumed and loaded.
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.saved = os.path.join(cls.folder, "learner.keras")
        cls.reference, cls.true_labels = toy.learner(cls.method, seed=3)
        toy.fit(cls.reference, cls.true_labels, steps=2)
        checkpoint.save(os.path.join(cls.folder, "checkpoint"), cls.reference, {"step": 2})
        cls.reference.save(cls.saved)
        cls.young_predictions = cls.reference.predict(cls.images(), verbose=0)
        cls.logs = toy.fit(cls.reference, cls.true_labels, steps=2, start=2)
        toy.fit(cls.reference, cls.true_labels, steps=1, start=4)

    @classmethod
    def images(cls):
        return cls.reference.task.images[:5]

    def every_pseudo_label_counts(self):
        """Returns the arguments of a learner that trains on every pseudo-label."""
        has_threshold = "confidence_threshold" in methods.arguments(self.method)
        return {"confidence_threshold": 0.0} if has_threshold else {}

    def test_fit_reports_every_term_and_monitor(self):
        learner = self.reference
        for key in (*learner.term_names, *learner.monitor_names, "weight_decay_loss", "loss"):
            self.assertTrue(np.isfinite(self.logs[key]), key)
        terms = [self.logs[key] for key in (*learner.term_names, "weight_decay_loss")]
        self.assertAlmostEqual(self.logs["loss"], sum(terms), places=4)

    def test_the_seed_decides_the_start(self):
        variables, others = {}, {}
        for seed in (3, 4):
            made = [toy.learner(self.method, seed=seed, compiled=False)[0] for _ in range(2)]
            values = [{v.path: np.array(v.numpy()) for v in one.variables} for one in made]
            for path, value in values[0].items():
                np.testing.assert_array_equal(value, values[1][path], path)
            variables, others = others, values[0]
        same = {path for path, value in variables.items() if np.array_equal(value, others[path])}
        random = {v.path for v in made[0].trainable_variables if len(v.shape) > 1}
        random |= {path for path in variables if "seed_generator" in path}
        self.assertGreater(len(random), 2)
        self.assertEmpty(random & same)

    def test_the_record_sees_each_labeled_example_and_no_other(self):
        learner = self.reference  # at least one pass through 20 labels, 4 a step
        if learner.finds_clusters:
            self.assertNotIn("record_examples", methods.arguments(self.method))
            with self.assertRaisesRegex(ValueError, "There is no record"):
                learner.example_record()
            return
        seen = learner.example_record()
        labeled = learner.task.labeled
        has_stream = "labeled" in learner.streams()  # of its own, else 5 batches pass all images
        least = 5 * learner.batch_size // 2 if has_stream else len(labeled)
        self.assertGreaterEqual(seen["observations"].sum(), least)
        unlabeled = np.setdiff1d(np.arange(toy.NUM_EXAMPLES), labeled)
        self.assertEqual(seen["observations"][unlabeled].sum(), 0)
        known = seen["observations"] > 0
        self.assertGreater(known[labeled].mean(), 0.4)
        self.assertTrue(np.isfinite(seen["mean_loss"][known]).all())
        margins, correct = seen["margin"][known], seen["last_correct"][known]
        np.testing.assert_array_equal(margins > 0, correct == 1)

    def test_each_term_has_a_gradient(self):
        """A loss that does not train went unseen for two years in one kit: ask for a gradient."""
        kwargs = {"weight_decay": 0.0, "compiled": False, **self.every_pseudo_label_counts()}
        learner, _ = toy.learner(self.method, **kwargs)
        terms, whole = learner.term_names, learner.objective

        def one_term_a_step(**indices):
            outcome = whole(**indices)
            turn = ops.cast(learner.step % len(terms), "int32")
            outcome["terms"] = {
                name: value * ops.cast(turn == position, "float32")
                for position, (name, value) in enumerate(outcome["terms"].items())
            }
            self.assertEqual((*outcome["terms"],), terms)
            return outcome

        learner.objective = one_term_a_step
        learner.compile(keras.optimizers.SGD(0.1))
        # A pass of the given labels alone.
        start = 5 if self.method in ("divide_mix", "pls_lsa") else 0
        if start:
            toy.fit(learner, steps=start)
        body = learner.network.trainable_variables[:3]
        head = contract.head(learner.network).trainable_variables
        for step in range(start, start + len(terms)):
            before = [[v.numpy() for v in part] for part in (body, head)]
            toy.fit(learner, steps=1, start=step)
            term = terms[step % len(terms)]
            # Into the depth of the network: a second head leaves its last layer alone. A probe is
            # that layer alone.
            changing, others = (head, body) if term == "probe_loss" else (body, ())
            for variable, value in zip(changing, before[changing is head]):
                self.assertGreater(np.abs(variable.numpy() - value).max(), 0, (term, variable.path))
            for variable, value in zip(others, before[0]):
                np.testing.assert_array_equal(variable.numpy(), value, (term, variable.path))

    def test_without_a_confident_example_the_loss_is_exactly_zero(self):
        if "confidence_threshold" not in methods.arguments(self.method):
            return
        learner, true_labels = toy.learner(self.method, confidence_threshold=1.0)
        logs = toy.fit(learner, true_labels, steps=2)
        self.assertTrue(np.isfinite(logs["loss"]))
        if self.method != "flexmatch":  # whose thresholds begin at 0
            self.assertEqual((logs["mask_rate"], logs["unsupervised_loss"]), (0, 0))

    if keras.backend.backend() == "tensorflow":  # JAX compiles each operation of an eager step

        @pytest.mark.slow
        def test_the_compiled_step_is_the_eager_one(self):
            unmixed = lambda size, *_, **__: (ops.arange(size), ops.ones((size,)))  # noqa: E731
            for module in (augment, interpolation):  # methods call it, and so does `mixup`
                self.enterContext(mock.patch.object(module, "mixing", unmixed))
            losses, arguments = [], self.every_pseudo_label_counts()
            if "batch_norm_splits" in methods.arguments(self.method):
                arguments["batch_norm_splits"] = 1  # of a batch in random order
            for eager in (False, True):
                learner, true_labels = toy.learner(self.method, **arguments)
                learner.compile(learner.optimizer, run_eagerly=eager)
                # TensorFlow draws other random numbers under XLA: compare without views and mixing.
                learner.weak_view = lambda images, indices, stream="labeled": images
                learner.strong_view = lambda images: 255.0 - images
                losses.append(toy.fit(learner, true_labels, steps=2)["loss"])
            self.assertTrue(np.isfinite(losses[0]))
            np.testing.assert_allclose(*losses, rtol=1e-3)

    @pytest.mark.slow
    def test_several_steps_per_execution_are_the_same_steps(self):
        many, _ = toy.learner(self.method, seed=3, steps_per_execution=2)
        toy.fit(many, self.true_labels, steps=2)
        logs = toy.fit(many, self.true_labels, steps=2, start=2)
        self.assertEqual(int(many.step.numpy()), 4)
        self.assertEqual(set(logs), set(self.logs))
        for key, value in self.logs.items():
            np.testing.assert_allclose(logs[key], value, rtol=1e-4, err_msg=key)

    def test_resumed_with_images_on_the_host_is_uninterrupted(self):
        # Other weights and random state, to be replaced.
        resumed, _ = toy.learner(self.method, seed=9, resident="host")
        resumed.seed = self.reference.seed
        resumed.optimizer.build(resumed.trainable_variables)
        folder = os.path.join(self.folder, "checkpoint")
        self.assertEqual(checkpoint.restore(folder, resumed), {"step": 2})
        toy.fit(resumed, self.true_labels, steps=3, start=2)

        for a, b in zip(self.reference.network.variables, resumed.network.variables):
            np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
        self.assertEqual(set(self.reference.states), set(resumed.states))
        for name, state in self.reference.states.items():
            np.testing.assert_array_equal(state.numpy(), resumed.states[name].numpy(), name)

    @pytest.mark.slow
    def test_save_load_and_train_on(self):
        self.assertLess(os.path.getsize(self.saved), 400_000)
        loaded = keras.models.load_model(self.saved)
        self.assertIs(type(loaded), type(self.reference))
        np.testing.assert_array_equal(
            loaded.predict(self.images(), verbose=0), self.young_predictions
        )
        with self.assertRaisesRegex(ValueError, "has no data. Call `attach"):
            loaded.batches()
        loaded.attach(self.reference.task)
        toy.fit(loaded, self.true_labels, steps=3, start=2)
        for a, b in zip(self.reference.network.variables, loaded.network.variables):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6, err_msg=a.path)

    def test_config_round_trip(self):
        other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 or 0.125}
        changed = {"seed": 5, "steps": 9, "decayed": "kernels"}
        if "weak_augmentation" in methods.arguments(self.method):
            changed["weak_augmentation"] = "none"
        for name, argument in methods.arguments(self.method).items():
            if argument.kind in other:
                changed[name] = other[argument.kind](argument.default)
        learner, _ = toy.learner(self.method, **changed)
        config = learner.get_config()
        self.assertEqual({k: config[k] for k in changed}, changed)
        self.assertEqual(set(methods.arguments(self.method)) - set(config), set())
        copy = type(learner).from_config(config)
        for key in (*methods.arguments(self.method), "seed", "steps"):
            self.assertEqual(getattr(copy, key), getattr(learner, key))

    @pytest.mark.slow
    def test_half_precision_stays_finite_and_the_record_can_be_left_out(self):
        # With its strong augmentation, and with noise: tracing a RandAugment takes seconds.
        for policy, records, views, contrastive in (
            ("mixed_bfloat16", False, STRONG, CONTRASTIVE),
            ("mixed_float16", True, dict.fromkeys(STRONG, toy.noise), toy.noise),
        ):
            before = keras.config.dtype_policy()
            keras.config.set_dtype_policy(policy)
            takes = "record_examples" in methods.arguments(self.method)
            try:
                arguments = {"record_examples": records} if takes else {}
                learner, true_labels = toy.learner(self.method, **arguments)
            finally:
                keras.config.set_dtype_policy(before)
            with (
                mock.patch.multiple(augment_views, **views),
                mock.patch.object(augment, "contrastive_view", contrastive),
            ):
                logs = toy.fit(learner, true_labels)
            self.assertTrue(np.isfinite(logs["loss"]), policy)
            self.assertEqual("record_rows" in learner.states, takes and records)
            self.assertEqual(int(learner.first_nonfinite_step.numpy()), -1)

    def test_arguments_out_of_range_are_refused(self):
        cls, network = methods.get(self.method), toy.network()
        for name, argument in methods.arguments(self.method).items():
            self.assertIs(type(argument.default), argument.kind, name)
            self.assertGreater(len(argument.help), 10, name)
            self.assertTrue(argument.invalid or argument.kind is bool, name)
            for value in (*argument.invalid, [1], None):
                with self.assertRaisesRegex(ValueError, f"`{name}` argument of .* must be"):
                    cls(network, **{name: value})

    def test_the_class_has_the_methods_name_and_shows_its_arguments(self):
        cls = methods.get(self.method)
        self.assertEqual(cls.__name__.lower(), self.method.replace("_", ""))
        parameters = inspect.signature(cls).parameters
        self.assertEqual([*parameters][:2], ["network", "task"])
        for name, argument in cls.arguments().items():
            self.assertEqual(parameters[name].default, argument.default)
            self.assertRegex(cls.__doc__, f"\n    {name}: {argument.kind.__name__}")


for _name in methods.names():
    _class = f"{_name.title().replace('_', '')}Test"
    globals()[_class] = type(_class, (MethodTest,), {"method": _name})
del MethodTest  # it has no method to test


if __name__ == "__main__":
    absltest.main()
