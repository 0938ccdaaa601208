# SPDX-License-Identifier: Apache-2.0
"""Distillation by hand: which view, whose logits, which temperature, which labels."""

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import Distill, Task, contract
from ssl_noisy.errors import UserError

NETWORK = [[0.25, 0.5, 0.25], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]
TEACHER = [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.25, 0.25, 0.5], [0.2, 0.6, 0.2]]


def table(probs):
    """Returns a network that answers an image of one pixel of value i with the logs of row i."""
    probs = np.array(probs, "float32")
    inputs = keras.Input((1, 1, 1))
    made = keras.Model(inputs, toy.LookUp(*probs.shape)(inputs))
    made.set_weights([np.log(probs)])
    return made


def learner(given_labels=(-1, -1, -1, -1), shift=0, **kwargs):
    """Returns a learner whose weak view of example i is example i + `shift`."""
    images = np.arange(4, dtype="uint8").reshape(-1, 1, 1, 1)
    task = Task(images, np.array(given_labels), num_classes=3)
    kwargs = {"batch_size": 4, "weight_decay": 0.0, **kwargs}
    made = Distill(table(NETWORK), task, teacher=table(TEACHER), **kwargs)
    made.weak_view = lambda images, indices, stream="labeled": (images + shift) % 4
    return made


def objective(made, *positions):
    outcome = made.objective(unlabeled=np.array(positions, "int32"))
    return {k: float(v) for k, v in (outcome["terms"] | outcome["monitors"]).items()}


class FormulaTest(parameterized.TestCase):
    @parameterized.parameters(
        # -(.5 ln .25 + .25 ln .5 + .25 ln .25), and -(.1 ln .7 + .1 ln .2 + .8 ln .1).
        (1.0, 0, 1.213007),
        (1.0, 1, 2.038679),
        # With squares: soft labels 2/3, 1/6, 1/6, the network 1/6, 2/3, 1/6. A fourth of
        # 5/6 ln 6 + 1/6 ln 1.5; without the square of the temperature it would be 1.560710.
        (0.5, 0, 0.390178),
        # With roots: soft labels .414214, .292893, .292893, the network .292893, .414214, .292893.
        # Four times .707107 * 1.227947 + .292893 * .881374.
        (2.0, 0, 4.505753),
    )
    def test_soft_labels_are_the_teachers_for_the_same_image(self, temperature, position, expected):
        found = objective(learner(distillation_temperature=temperature), position)
        self.assertAlmostEqual(found["distillation_loss"], expected, places=5)
        self.assertEqual(found["supervised_loss"], 0)

    def test_teacher_and_network_see_the_same_view(self):
        shifted, plain = learner(shift=1), learner()
        for position in (0, 3):
            self.assertEqual(
                objective(shifted, position), objective(plain, (position + 1) % 4), position
            )

    def test_the_loss_is_the_mean_and_agreement_the_share_of_equal_classes(self):
        made = learner()
        one_by_one = [objective(made, i) for i in range(4)]
        together = objective(made, 2, 0, 3, 1)
        for name in together:
            self.assertAlmostEqual(together[name], np.mean([x[name] for x in one_by_one]), 5, name)
        self.assertEqual([x["agreement"] for x in one_by_one], [0, 0, 1, 1])

    def test_given_labels_have_the_rest_of_the_weight(self):
        made = learner((2, -1, 0, -1), distillation_weight=0.75)
        # A fourth of the mean of ln 4 and ln 5, of the two that have a label.
        found = objective(made, 0, 1, 2, 3)
        self.assertAlmostEqual(found["supervised_loss"], 0.25 * (1.386294 + 1.609438) / 2, 5)
        # Three fourths of the mean of 1.213008, 2.038679, 1.060132 and 1.054920.
        self.assertAlmostEqual(found["distillation_loss"], 0.75 * 1.341685, places=5)
        self.assertEqual(objective(made, 1, 3)["supervised_loss"], 0)

    @parameterized.parameters(0.5, 4.0)
    def test_the_gradient_by_hand(self, temperature):
        made = learner(distillation_temperature=temperature)
        probs = [np.array(x) ** (1 / temperature) for x in (NETWORK, TEACHER)]
        probs = [x / x.sum(axis=1, keepdims=True) for x in probs]
        # T**2 times 1 / T times the difference, of a mean over four.
        expected = temperature * (probs[0] - probs[1]) / 4
        np.testing.assert_allclose(toy.table_gradient(made), expected, atol=1e-5)


class TeacherTest(parameterized.TestCase):
    def test_labels_change_nothing_and_the_teacher_stays(self):
        networks = []
        for labels in (0, 50):
            keras.utils.set_random_seed(0)
            network, teacher = toy.network(), toy.network()
            # Other statistics than those of a batch: the teacher normalizes by its own.
            teacher.set_weights([w + 0.1 for w in teacher.get_weights()])
            before = teacher.get_weights()
            made = Distill(network, toy.task(labels)[0], teacher=teacher, batch_size=16)
            made.compile(keras.optimizers.SGD(0.1))
            toy.fit(made, steps=3)
            for value, expected in zip(teacher.get_weights(), before, strict=True):
                np.testing.assert_array_equal(value, expected)
            self.assertEmpty(
                {id(v) for v in made.trainable_variables} & set(map(id, teacher.variables))
            )
            self.assertLen(made.decayed_variables(), len(network.trainable_variables))
            networks.append(network.get_weights())
        for one, other in zip(*networks, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_the_teacher_normalizes_by_its_running_statistics(self):
        made, _ = toy.learner("distill", weak_augmentation="none", distillation_weight=1.0)
        seen = made.images(np.arange(32, dtype="int32"))
        probs = ops.softmax(made.teacher(seen, training=False))
        logits = made.network(seen, training=True)
        expected = -ops.mean(ops.sum(probs * ops.log_softmax(logits), axis=-1))
        found = objective(made, *range(32))["distillation_loss"]
        self.assertAlmostEqual(found, float(expected), places=4)
        made.teacher.trainable = True  # frozen, Keras's batch norm never normalizes by the batch
        by_batch = ops.softmax(made.teacher(seen, training=True))
        self.assertGreater(float(ops.max(ops.abs(by_batch - probs))), 1e-3)

    def test_a_network_without_weights_gets_them(self):
        task, _ = toy.task()
        teacher = toy.users_network("functional")
        for kind in ("sequential", "subclassed"):
            made = Distill(toy.users_network(kind), task, teacher=teacher)
            self.assertEqual(contract.num_logits(made.network), 10)

    def test_mistakes(self):
        task, _ = toy.task()
        network = toy.network()
        probs = keras.Sequential([toy.network(), keras.layers.Softmax()])
        four = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        four.add(keras.layers.Dense(4))
        for teacher, message in (
            (None, "`teacher` argument of `Distill` must be a trained .* Received: teacher=None"),
            (
                network,
                "must be a trained keras.Model other than the network. Received: teacher=fun",
            ),
            (four, "The teacher must know the task's 10 classes. Received: one of 4 classes"),
            (
                toy.users_network("functional", (12, 8, 3)),
                r"of shape \(8, 8, 1\). Rec.* \(12, 8, 3\)",
            ),
            (probs, "must return logits"),
        ):
            with self.assertRaisesRegex(UserError, message):
                Distill(network, task, teacher=teacher)


if __name__ == "__main__":
    absltest.main()
