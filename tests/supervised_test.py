# SPDX-License-Identifier: Apache-2.0
import numpy as np
import toy
from absl.testing import absltest
from keras import ops

from ssl_noisy import losses


class SupervisedTest(absltest.TestCase):
    def test_the_loss_is_the_mean_cross_entropy_of_the_given_labels(self):
        learner, _ = toy.learner("supervised", weak_augmentation="none")
        indices = np.array([0, 3, 7, 7], "int32")
        images = ops.cast(learner.task.images[indices], "float32")
        logits = learner.network(images, training=True)
        expected = np.mean(losses.cross_entropy(learner.task.given_labels[indices], logits))
        outcome = learner.objective(labeled=indices)
        self.assertAlmostEqual(float(outcome["terms"]["supervised_loss"]), expected, places=5)

    def test_unlabeled_examples_are_never_drawn(self):
        learner, _ = toy.learner("supervised")
        batches = learner.batches()
        drawn = np.concatenate([batches[i][0]["labeled"] for i in range(50)])
        np.testing.assert_array_equal(np.unique(drawn), np.arange(20))

    def test_it_learns_its_labels(self):
        learner, _ = toy.learner("supervised", ema_momentum=0.0, batch_size=20)
        toy.fit(learner, steps=150)
        labeled = learner.task.labeled
        logs = learner.evaluate(
            learner.task.images[labeled],
            learner.task.given_labels[labeled],
            verbose=0,
            return_dict=True,
        )
        self.assertGreater(logs["accuracy"], 0.9)


if __name__ == "__main__":
    absltest.main()
