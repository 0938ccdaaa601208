# SPDX-License-Identifier: Apache-2.0
"""What every method must do. The methods come from the folder: a new one is tested here at once.

Each method has a test class of its own, so that its tests share one trained reference.
"""

import inspect
import os
from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest
from keras import ops

from ssl_noisy import augment, methods
from ssl_noisy.augment import interpolation
from ssl_noisy.augment import views as augment_views
from ssl_noisy.runs import checkpoint

NUM_METHODS = 19  # raise it with each new file: an empty folder must not pass
RAND_AUGMENT = augment.rand_augment


class FolderTest(absltest.TestCase):
    def test_the_folder_is_what_is_tested(self):
        self.assertLen(methods.names(), NUM_METHODS)


class MethodTest(absltest.TestCase):
    """Base of one class for each method, which states `method`."""

    method = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.enterClassContext(mock.patch.object(augment_views, "rand_augment", toy.noise))
        # The reference, of which the tests below ask for the same numbers by other ways.
        cls.reference, cls.true_labels = toy.learner(cls.method, seed=3)
        cls.logs_of_four_steps = toy.fit(cls.reference, cls.true_labels, steps=4)
        toy.fit(cls.reference, cls.true_labels, steps=1, start=4)
        # Another one of the same seed, two steps old: what is resumed and saved.
        cls.young, _ = toy.learner(cls.method, seed=3)
        toy.fit(cls.young, cls.true_labels, steps=2)

    def test_fit_reports_every_term_and_monitor(self):
        with mock.patch.object(augment_views, "rand_augment", RAND_AUGMENT):  # as it runs
            learner, true_labels = toy.learner(self.method)
            logs = toy.fit(learner, true_labels)
        for key in (*learner.term_names, *learner.monitor_names, "weight_decay_loss", "loss"):
            self.assertTrue(np.isfinite(logs[key]), key)
        terms = [logs[key] for key in (*learner.term_names, "weight_decay_loss")]
        self.assertAlmostEqual(logs["loss"], sum(terms), places=4)

    def test_the_record_sees_each_labeled_example_and_no_other(self):
        learner = self.reference  # at least one pass through 20 labels, 4 a step
        seen = learner.example_record()
        labeled = learner.task.labeled
        self.assertGreaterEqual(seen["observations"].sum(), 5 * learner.batch_size // 2)
        unlabeled = np.setdiff1d(np.arange(toy.NUM_EXAMPLES), labeled)
        self.assertEqual(seen["observations"][unlabeled].sum(), 0)
        known = seen["observations"] > 0
        self.assertGreater(known[labeled].mean(), 0.4)
        self.assertTrue(np.isfinite(seen["mean_loss"][known]).all())
        margins, correct = seen["margin"][known], seen["last_correct"][known]
        np.testing.assert_array_equal(margins > 0, correct == 1)

    def test_each_term_has_a_gradient(self):
        """A loss that does not train went unseen for two years in one kit: ask for a gradient."""
        for term in methods.get(self.method).term_names:
            kwargs = {}
            if "confidence_threshold" in methods.arguments(self.method):
                kwargs["confidence_threshold"] = 0.0  # so that every pseudo-label counts
            learner, _ = toy.learner(self.method, weight_decay=0.0, compiled=False, **kwargs)
            only = {term}
            whole = learner.objective

            def objective(whole=whole, only=only, **indices):
                outcome = whole(**indices)
                terms = outcome["terms"]
                outcome["terms"] = {k: v if k in only else ops.zeros(()) for k, v in terms.items()}
                return outcome

            learner.objective = objective
            learner.compile(keras.optimizers.SGD(1.0))
            before = [v.numpy() for v in learner.network.trainable_variables]
            # DivideMix begins with one pass, 5 steps here, of the given labels alone.
            toy.fit(learner, steps=6 if self.method == "divide_mix" else 1)
            # Into the depth of the network: a second head leaves its last layer alone.
            for variable, value in zip(learner.network.trainable_variables[:3], before):
                self.assertGreater(np.abs(variable.numpy() - value).max(), 0, (term, variable.path))

    def test_without_a_confident_example_the_loss_is_exactly_zero(self):
        if "confidence_threshold" not in methods.arguments(self.method):
            return
        learner, true_labels = toy.learner(self.method, confidence_threshold=1.0)
        logs = toy.fit(learner, true_labels, steps=2)
        self.assertTrue(np.isfinite(logs["loss"]))
        if self.method != "flexmatch":  # whose thresholds begin at 0
            self.assertEqual((logs["mask_rate"], logs["unsupervised_loss"]), (0, 0))

    def test_xla_and_plain_steps_agree(self):
        unmixed = lambda size, *_, **__: (ops.arange(size), ops.ones((size,)))  # noqa: E731
        for module in (augment, interpolation):  # methods call it, and so does `mixup`
            self.enterContext(mock.patch.object(module, "mixing", unmixed))
        results = []
        for jit_compile in (True, False) if keras.backend.backend() == "tensorflow" else (True,):
            learner, true_labels = toy.learner(self.method, jit_compile=jit_compile)
            # TensorFlow draws other random numbers under XLA: compare without views and mixing.
            learner.weak_view = lambda images, indices, stream="labeled": images
            learner.strong_view = lambda images: 255.0 - images
            logs = toy.fit(learner, true_labels, steps=2)
            self.assertTrue(np.isfinite(logs["loss"]))
            results.append(logs["loss"])
        np.testing.assert_allclose(results, results[0], rtol=1e-3)

    def test_several_steps_per_execution_are_the_same_steps(self):
        many, _ = toy.learner(self.method, seed=3, steps_per_execution=2)
        logs = toy.fit(many, self.true_labels, steps=4)
        self.assertEqual(int(many.step.numpy()), 4)
        self.assertEqual(set(logs), set(self.logs_of_four_steps))
        for key, value in self.logs_of_four_steps.items():
            np.testing.assert_allclose(logs[key], value, rtol=1e-4, err_msg=key)

    def test_another_seed_gives_other_weights_and_a_record_can_be_left_out(self):
        # That the same seed gives the same weights is what the next test asks.
        other, _ = toy.learner(self.method, seed=4, record_examples=False)
        toy.fit(other, self.true_labels, steps=5)
        self.assertNotIn("record_rows", other.states)
        weights = (made.network.trainable_variables for made in (self.reference, other))
        for a, b in zip(*weights):
            self.assertTrue((a.numpy() != b.numpy()).any(), a.path)

    def test_resumed_is_uninterrupted(self):
        folder = self.create_tempdir().full_path
        checkpoint.save(folder, self.young, {"step": 2})
        # Other weights and random state, to be replaced.
        resumed, _ = toy.learner(self.method, seed=9)
        resumed.seed = self.young.seed
        resumed.optimizer.build(resumed.trainable_variables)
        self.assertEqual(checkpoint.restore(folder, resumed), {"step": 2})
        toy.fit(resumed, self.true_labels, steps=3, start=2)

        for a, b in zip(self.reference.network.variables, resumed.network.variables):
            np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
        self.assertEqual(set(self.reference.states), set(resumed.states))
        for name, state in self.reference.states.items():
            np.testing.assert_array_equal(state.numpy(), resumed.states[name].numpy(), name)

    def test_save_load_and_train_on(self):
        path = os.path.join(self.create_tempdir().full_path, "learner.keras")
        self.young.save(path)
        self.assertLess(os.path.getsize(path), 400_000)
        loaded = keras.models.load_model(path)
        self.assertIs(type(loaded), type(self.young))
        images = self.young.task.images[:5]
        np.testing.assert_array_equal(
            loaded.predict(images, verbose=0), self.young.predict(images, verbose=0)
        )
        with self.assertRaisesRegex(ValueError, "has no data. Call `attach"):
            loaded.batches()
        loaded.attach(self.young.task)
        toy.fit(loaded, self.true_labels, steps=3, start=2)
        for a, b in zip(self.reference.network.variables, loaded.network.variables):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6, err_msg=a.path)

    def test_config_round_trip(self):
        other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 or 0.125}
        changed = {"seed": 5, "steps": 9, "weak_augmentation": "none", "decayed": "kernels"}
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

    def test_half_precision_stays_finite(self):
        for policy in ("mixed_bfloat16", "mixed_float16"):
            before = keras.config.dtype_policy()
            keras.config.set_dtype_policy(policy)
            try:
                learner, true_labels = toy.learner(self.method)
            finally:
                keras.config.set_dtype_policy(before)
            logs = toy.fit(learner, true_labels)
            self.assertTrue(np.isfinite(logs["loss"]), policy)
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
