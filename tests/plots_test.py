# SPDX-License-Identifier: Apache-2.0
import os
import warnings

import numpy as np
import toy
from absl.testing import absltest, parameterized
from matplotlib import colors, image

from ssl_noisy.labels import detection, mixture_model
from ssl_noisy.runs import plots

NAN = np.nan


class PlotsTest(parameterized.TestCase):
    def test_curves_show_the_columns_of_the_history(self):
        path = os.path.join(self.create_tempdir().full_path, "curves.png")
        history = [
            {"step": 10, "test_accuracy": 0.2, "mask_rate": 0.0, "pseudo_label_accuracy": None},
            {"step": 20, "test_accuracy": 1.0, "mask_rate": 0.5, "pseudo_label_accuracy": 0.8},
        ]
        baseline = [{"step": 10.0, "test_accuracy": 0.1}, {"step": 20.0, "test_accuracy": 0.3}]
        expected = [[20, 100], [0, 50], [NAN, 80]]
        for others in (None, ("supervised", baseline)):
            figure = plots.curves(history, path, others)
            axes = figure.axes[0]
            lines = [line.get_xydata() for line in axes.lines]
            for line, values in zip(
                lines, expected + [[10, 30]][: others is not None], strict=True
            ):
                np.testing.assert_allclose(line, np.stack([[10, 20], values], axis=1))
            (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
            self.assertTrue(low < 0 and high > 100 and left < 0 and right > 20)  # whole markers
            self.assertEqual(axes.get_ylabel(), "fraction of the images (%)")
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        self.assertEqual(
            [names[0], names[-1]], ["test accuracy"] + ["test accuracy of the baseline supervised"]
        )
        image.imread(path)

    def test_validation_curves_are_means_of_the_runs_that_reached_an_epoch(self):
        runs = [[{"validation_accuracy": x} for x in row] for row in ([0.5, 0.7, 0.6], [0.3, 0.5])]
        path = os.path.join(self.create_tempdir().full_path, "curves.png")
        figure = plots.validation_curves({"worst": runs, "aggre": runs[1:]}, path)
        worst, aggre = (line.get_xydata() for line in figure.axes[0].lines)
        np.testing.assert_allclose(worst, [[1, 40], [2, 60], [3, 60]])
        np.testing.assert_allclose(aggre, [[1, 30], [2, 50]])
        image.imread(path)

    def test_pictures_are_of_the_format_of_their_suffix_and_reproducible(self):
        history = [{"step": 10, "test_accuracy": 0.2}]
        folder = self.create_tempdir().full_path
        for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
            contents = []
            for number in (1, 2):
                path = os.path.join(folder, f"{number}.{kind}")
                plots.curves(history, path)
                with open(path, "rb") as file:
                    contents.append(file.read())
            self.assertEqual(contents[0], contents[1])
            self.assertStartsWith(contents[0], start)

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

    def test_loss_histogram_counts_the_losses_beyond_the_range(self):
        _, x, _ = detection.fit_posterior(np.arange(200.0))
        label = plots.loss_histogram(x, None, self.path).axes[0].get_xlabel()
        # The percentiles are 9.95 and 189.05; 10 and 189 are within 0.001 of 0 and 1.
        self.assertIn("first bar includes the 11 losses up to 0, the last one the 11 from", label)

    def test_loss_histogram_cuts_infinite_densities(self):
        x = np.random.default_rng(0).beta(0.2, 0.2, 400)
        fitted = mixture_model.BetaMixtureModel(10, 0).fit(x)
        axes = plots.loss_histogram(x, fitted, self.path).axes[0]
        places, sums = axes.lines[2].get_xydata().T
        self.assertGreater(sums.max(), axes.get_ylim()[1])
        inside = (places > 0.02) & (places < 0.98)
        self.assertLess(sums[inside].max(), axes.get_ylim()[1])
        # A peak above all bars is not cut.
        fitted = mixture_model.BetaMixtureModel(10, 0).fit(np.linspace(0.4, 0.5, 20))
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
        given = np.array([0, 0, 0, 0, 2, 2, 0, 2, 0])
        predicted = np.array([0, 1, 1, 1, 2, 0, -1, -1, -1])
        names = ["cat", "$\\dog$", "a$x_"]
        for seen in (given >= 0, predicted >= 0):
            figure = plots.label_matrix(given[seen], predicted[seen], names, self.path, 1234)
            axes = self.assert_written(figure)
            texts = {text.get_position(): int(text.get_text()) for text in axes.texts}
            expected = np.array([[1, 3, 0, 2], [0, 0, 0, 0], [1, 0, 1, 1]])
            shares = expected / [[6], [1], [3]]
            if seen.sum() == 6:  # every label has a prediction
                expected = expected[:, :3]
                shares = expected / [[4], [1], [2]]
            columns = [*names, "none"][: expected.shape[1]]
            numbers = [[texts[c, r] for c in range(len(columns))] for r in range(3)]
            np.testing.assert_array_equal(numbers, expected)
            self.assertEqual(np.sum(numbers), seen.sum())
            np.testing.assert_allclose(np.square(axes.images[0].get_array()), shares, atol=1e-12)
            self.assertEqual([t.get_text() for t in axes.get_xticklabels()], columns)
            self.assertEqual([t.get_text() for t in axes.get_yticklabels()], names)
            rest = ", 3 without a prediction" if seen.all() else ""
            self.assertEqual(
                axes.get_title(),
                f"{seen.sum()} labels: 2 predicted as given, 4 otherwise{rest}\n"
                "1,234 unlabeled images are not shown",
            )
        self.assertEqual(axes.images[0].get_clim(), (0, 1))
        self.assertEqual((axes.get_xlabel(), axes.get_ylabel()), ("predicted label", "given label"))
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
