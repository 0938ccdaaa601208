# SPDX-License-Identifier: Apache-2.0
import os
import warnings

import numpy as np
import toy
from absl.testing import absltest, parameterized
from matplotlib import colors, image

from ssl_noisy.labels import detection, mixture
from ssl_noisy.runs import plots

NAN = np.nan


class PlotsTest(parameterized.TestCase):
    def test_curves_show_the_columns_of_the_history(self):
        path = os.path.join(self.create_tempdir().full_path, "curves.png")
        history = [
            {"step": 10, "test_accuracy": 0.2, "mask_rate": 0.0, "pseudo_label_accuracy": None},
            {"step": 20, "test_accuracy": 0.9, "mask_rate": 0.5, "pseudo_label_accuracy": 0.8},
        ]
        plots.curves(history, path)
        with_masks = image.imread(path)
        plots.curves([{k: row[k] for k in ("step", "test_accuracy")} for row in history], path)
        self.assertGreater(np.abs(with_masks - image.imread(path)).sum(), 0)

    @parameterized.parameters("fixmatch", "supervised")
    def test_views_do_not_change_the_random_state(self, method):
        learner, _ = toy.learner(method, compiled=False)
        before = np.array(learner.seed_generator.state.value)
        path = os.path.join(self.create_tempdir().full_path, "views.png")
        plots.views(learner, path)
        np.testing.assert_array_equal(np.array(learner.seed_generator.state.value), before)
        height, width, _ = image.imread(path).shape
        rows = 3 if method == "fixmatch" else 2
        self.assertAlmostEqual(height / width, rows * 1.2 / 11, places=1)

    def test_views_of_the_derandomized_flip(self):
        learner, _ = toy.learner(
            "supervised", compiled=False, weak_augmentation="alternating_flip_shift"
        )
        path = os.path.join(self.create_tempdir().full_path, "views.png")
        plots.views(learner, path)
        self.assertGreater(image.imread(path).std(), 0.1)


def bars(axes):
    """Returns the left ends, widths and heights of all bars, each `(num_bars,)`."""
    boxes = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in axes.patches]
    return np.array(boxes).T


class LabelPlotsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.create_tempdir().full_path, "run", "picture.png")

    def assert_written(self, figure):
        height, width, _ = image.imread(self.path).shape
        np.testing.assert_allclose([width, height], figure.get_size_inches() * 200, atol=1)
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["picture.png"])
        return figure.axes[0]

    def test_loss_histogram(self):
        rng = np.random.default_rng(0)
        losses = np.concatenate([rng.beta(2, 12, 300), rng.beta(8, 3, 100), [NAN, NAN]])
        wrong = np.arange(402) >= 300
        fitted, x, _ = detection.fit_posterior(losses)
        for truth in (None, wrong):
            axes = self.assert_written(plots.loss_histogram(x, fitted, self.path, truth))
            left, width, height = bars(axes)
            self.assertAlmostEqual((width * height).sum(), 1.0)
            self.assertGreater(axes.get_ylim()[1], height.max())
            legend = [text.get_text() for text in axes.get_legend().get_texts()]
            curves = ["clean component", "noisy component", "their sum"]
            names = ["labels (400)"] if truth is None else ["clean (300)", "wrong (100)"]
            self.assertEqual(legend, names + curves)
            lines = [line.get_xydata().T for line in axes.lines]
            for row, (places, values) in enumerate(lines):
                density = fitted.density(places).T
                expected = density.sum(axis=0) if row == 2 else density[row]
                np.testing.assert_allclose(values, expected)
        is_clean = np.repeat([True, False], 50)
        self.assertAlmostEqual((width * height)[is_clean].sum(), 0.75)
        counts, _ = np.histogram(x[300:400], 50, (0, 1))
        np.testing.assert_allclose((width * height * 400)[~is_clean], counts, atol=1e-9)
        np.testing.assert_allclose(left[is_clean], np.arange(50) / 50, atol=1e-12)
        self.assertEqual(
            [colors.to_hex(axes.patches[i].get_facecolor()) for i in (0, 50)],
            [line.get_color().lower() for line in axes.lines[:2]],
        )

    def test_loss_histogram_cuts_infinite_densities(self):
        x = np.random.default_rng(0).beta(0.2, 0.2, 400)
        fitted = mixture.BetaMixtureModel(10, 0).fit(x)
        axes = plots.loss_histogram(x, fitted, self.path).axes[0]
        places, sums = axes.lines[2].get_xydata().T
        self.assertGreater(sums.max(), axes.get_ylim()[1])
        inside = (places > 0.02) & (places < 0.98)
        self.assertLess(sums[inside].max(), axes.get_ylim()[1])
        # A peak above all bars is not cut.
        fitted = mixture.BetaMixtureModel(10, 0).fit(np.linspace(0.4, 0.5, 20))
        axes = plots.loss_histogram(np.linspace(0, 1, 50), fitted, self.path).axes[0]
        self.assertLess(axes.lines[2].get_ydata().max(), axes.get_ylim()[1])

    def test_loss_histogram_without_losses(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            axes = self.assert_written(plots.loss_histogram(np.full(3, NAN), None, self.path))
        self.assertEmpty(axes.lines)
        self.assertEqual(axes.get_legend().get_texts()[0].get_text(), "labels (0)")

    def test_aum_histogram(self):
        aum = np.array([-4.0, -3.0, -3.0, 1.0, 2.0, NAN, 6.0, 6.0])
        wrong = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
        axes = self.assert_written(plots.aum_histogram(aum, -1.25, self.path, wrong))
        left, width, height = bars(axes)
        self.assertAlmostEqual((width * height).sum(), 1.0)
        self.assertAlmostEqual((width * height)[50:].sum(), 3 / 7)
        self.assertAlmostEqual(left.min(), -4.0)
        self.assertAlmostEqual((left + width).max(), 6.0)
        self.assertAlmostEqual((width * height)[np.isclose(left, -3.0)].sum(), 2 / 7)
        self.assertEqual(np.unique(axes.lines[0].get_xdata()).tolist(), [-1.25])
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        self.assertEqual(legend, ["clean (4)", "wrong (3)", "threshold -1.25"])

        axes = self.assert_written(plots.aum_histogram(aum, -np.inf, self.path))
        self.assertEmpty(axes.lines)
        self.assertAlmostEqual((bars(axes)[1] * bars(axes)[2]).sum(), 1.0)

    def test_label_matrix(self):
        given = np.array([0, 0, 0, 0, 2, 2, 0, 2])
        predicted = np.array([0, 1, 1, 1, 2, 0, -1, -1])
        figure = plots.label_matrix(given, predicted, ["cat", "$\\dog$", "a$x_"], self.path)
        axes = self.assert_written(figure)
        texts = {text.get_position(): text.get_text() for text in axes.texts}
        numbers = [[texts[column, row] for column in range(3)] for row in range(3)]
        self.assertEqual(numbers, [["1", "3", "0"], ["0", "0", "0"], ["1", "0", "1"]])
        shares = [[0.25, 0.75, 0], [0, 0, 0], [0.5, 0, 0.5]]
        np.testing.assert_allclose(np.square(axes.images[0].get_array()), shares, atol=1e-12)
        self.assertEqual(axes.images[0].get_clim(), (0, 1))
        self.assertEqual((axes.get_xlabel(), axes.get_ylabel()), ("predicted label", "given label"))
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            self.assertEqual([tick.get_text() for tick in ticks], ["cat", "$\\dog$", "a$x_"])
        ticks = zip(figure.axes[1].get_yticks(), figure.axes[1].get_yticklabels())
        for place, label in ticks:  # those of the color bar
            self.assertAlmostEqual(100 * place**2, float(label.get_text().rstrip("%")))

    @parameterized.parameters((20, 400, 20), (21, 0, 21), (150, 0, 75))
    def test_label_matrix_of_many_classes(self, num_classes, num_texts, num_ticks):
        labels = np.arange(num_classes)
        names = [f"class {label}" for label in labels]
        axes = plots.label_matrix(labels, labels[::-1], names, self.path).axes[0]
        self.assertLen(axes.texts, num_texts)
        self.assertLen(axes.get_xticks(), num_ticks)
        self.assertEqual(axes.get_xticklabels()[2].get_text(), names[axes.get_xticks()[2]])
        np.testing.assert_array_equal(axes.images[0].get_array(), np.eye(num_classes)[::-1])

    def gallery(self, quality, channels=1, names=tuple("abcdefghij"), **settings):
        """Draws images whose pixels and labels are their position; the next is suggested."""
        place = np.arange(len(quality))
        images = np.full((len(quality), 4, 4, channels), place[:, None, None, None], "uint8")
        images[..., -1] += 100  # the last channel differs
        return plots.gallery(
            images, place % 10, (place + 1) % 10, np.array(quality), names, self.path, **settings
        )

    def drawn(self, figure):
        return [axes for axes in figure.axes if axes.images]

    @parameterized.parameters(1, 3)
    def test_gallery_shows_the_worst_in_order(self, channels):
        figure = self.gallery([0.5, 0.1, NAN, 0.9, 0.0, 0.1], channels, count=4)
        self.assert_written(figure)
        drawn = self.drawn(figure)
        self.assertEqual([axes.get_title() for axes in drawn], ["e → f", "b → c", "f → g", "a → b"])
        values = [np.array(axes.images[0].get_array())[0, 0] for axes in drawn]
        last = np.array([104, 101, 105, 100])
        expected = last if channels == 1 else np.stack([last - 100, last - 100, last], axis=1)
        np.testing.assert_array_equal(values, expected)
        self.assertEqual(drawn[0].images[0].get_clim(), (0, 255))
        self.assertLen(figure.axes, 8)

    def test_gallery_has_at_most_64_images(self):
        figure = self.gallery(np.arange(70)[::-1] / 70)
        self.assert_written(figure)
        self.assertLen(self.drawn(figure), 64)
        self.assertEqual(figure.axes[0].get_title(), "j → a")  # position 69
        rows = {round(axes.get_subplotspec().rowspan.start) for axes in figure.axes}
        self.assertEqual(rows, set(range(8)))

    def test_gallery_without_images(self):
        figure = self.gallery([NAN, NAN])
        self.assert_written(figure)
        self.assertEmpty(self.drawn(figure))

    def test_gallery_breaks_long_names(self):
        names = ["$\\dog$", *"automobile bird cat deer dog frog horse ship truck".split()]
        figure = self.gallery(np.arange(9) / 9, names=names)
        self.assert_written(figure)
        self.assertEqual(figure.axes[0].get_title(), "$\\dog$\n→ automobile")
        self.assertEqual((len(self.drawn(figure)), len(figure.axes)), (9, 16))


if __name__ == "__main__":
    absltest.main()
