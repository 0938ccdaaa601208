# SPDX-License-Identifier: Apache-2.0
"""Reports of runs: the data in the page is that of the files, and mistakes are one line."""

import base64
import contextlib
import gc
import gzip
import html
import io
import json
import pathlib
import re
import shlex
import shutil
import tempfile
import weakref
from unittest import mock

import numpy as np
import pytest
import report_files
from absl import flags
from absl.testing import absltest, parameterized
from PIL import Image

from ssl_noisy import command, report
from ssl_noisy.errors import UserError
from ssl_noisy.labels import detection
from ssl_noisy.reports import charts, collect, page, review, summary
from ssl_noisy.runs import folder, labeling
from ssl_noisy.settings import Settings


def call(*arguments):
    """Runs the command and returns its exit code, output and lines of errors."""
    values = flags.FlagValues()
    report.define_flags(values)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            wanted = report.read_flags(["report", *map(str, arguments)], values)
        except (flags.Error, UserError) as error:
            code = command.fail("report", error)
        else:
            code = command.execute("report", report.main, wanted)
    return code, out.getvalue(), err.getvalue().splitlines()


def embedded(text, id):
    """Returns the content of a script element."""
    return re.search(f'<script type="[^"]*" id="{id}">(.*?)</script>', text, re.S)[1]


def rows_of(text):
    return json.loads(gzip.decompress(base64.b64decode(embedded(text, "rows"))))


class ReportTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.run_dir = cls.root / "run"
        settings = Settings(method="elr", network="small_cnn", noise="symmetric:0.4")
        cls.dataset = report_files.write(cls.run_dir, settings)
        code, cls.out, err = call(cls.run_dir)
        assert_equal = absltest.TestCase().assertEqual
        assert_equal((code, err), (0, []))
        cls.text = (cls.run_dir / "report.html").read_text(encoding="utf-8")

    def test_rows_are_those_of_the_file_most_suspicious_first(self):
        found = rows_of(self.text)
        examples = detection.read_examples(self.run_dir / folder.EXAMPLES)
        columns = found["columns"]
        self.assertEqual(found["key"], "index")
        self.assertLen(columns["example"], 1297)
        self.assertEqual(columns["label_quality"], sorted(columns["label_quality"]))
        by_index = {index: row for row, index in enumerate(columns["example"])}
        for row in (0, 7, 1296):
            place = by_index[examples["index"][row]]
            self.assertEqual(columns["given"][place], examples["given_label"][row])
            self.assertEqual(columns["issue"][place], examples["label_quality"][row] < 0.5)
            self.assertEqual(
                columns["wrong_predictions"][place], examples["wrong_predictions"][row]
            )
            for name in review.EVIDENCE:
                np.testing.assert_allclose(columns[name][place], examples[name][row], rtol=1e-3)

    def test_thumbnails_are_the_images(self):
        thumbnails = rows_of(self.text)["thumbnails"]
        self.assertEqual((thumbnails["count"], thumbnails["width"]), (1297, 8))
        content = base64.b64decode(thumbnails["url"].partition(",")[2])
        sprite = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        index = rows_of(self.text)["columns"]["example"][100]
        row, column = divmod(100, thumbnails["columns"])
        tile = sprite[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        image = self.dataset.images[np.searchsorted(self.dataset.ids, index), :, :, 0]
        np.testing.assert_array_equal(tile, image)

    def test_figures_are_those_of_the_files(self):
        figures = json.loads(embedded(self.text, "figures"))
        self.assertEqual(figures["accuracy"]["data"][0]["x"], [10, 20])
        self.assertEqual(figures["accuracy"]["data"][0]["y"], [0.5, 0.75])
        counts = np.array(figures["confusion-0"]["data"][0]["customdata"])
        np.testing.assert_array_equal(counts, np.eye(10) * 3 + 1)
        bars = [bar for bar in figures["loss-0"]["data"] if bar["type"] == "bar"]
        self.assertRegex(bars[1]["name"], r"wrong labels \(518\)")  # 40 % of 1297
        self.assertAlmostEqual(sum(map(sum, (bar["y"] for bar in bars))) / 40, 1, places=4)

    def test_headline_names_protocols(self):
        for text in ("75.00 %", "Last checkpoint", "Fewer than 20 evaluations", "oracle"):
            self.assertIn(text, self.text)
        self.assertIn("--noise=symmetric:0.4", self.text)
        self.assertIn("small_cnn, 1,234 parameters", self.text)

    def test_nothing_points_to_a_network(self):
        text = re.sub(r"<script.*?</script>", "", self.text, flags=re.S)
        self.assertNotRegex(text, r"https?://")
        self.assertIn("default-src 'none'", self.text)

    def test_two_reports_are_identical(self):
        again = self.root / "again.html"
        self.assertEqual(call(self.run_dir, f"--output={again}")[0], 0)
        self.assertEqual(again.read_text(encoding="utf-8"), self.text)

    def test_several_runs(self):
        second = self.root / "second"
        report_files.write(
            second, Settings(network="small_cnn", num_labels=20), accuracy=(0.1, 0.2)
        )
        output = self.root / "both.html"
        self.assertEqual(call(self.run_dir, second, f"--output={output}")[0], 0)
        text = output.read_text(encoding="utf-8")
        figures = json.loads(embedded(text, "figures"))
        self.assertEqual([line["name"] for line in figures["accuracy"]["data"]], ["run", "second"])
        self.assertIn("20.00 %", text)
        self.assertNotIn('id="rows"', text)
        sweep = self.root / "sweep"
        (sweep / "runs" / "unfinished").mkdir(parents=True)
        shutil.copytree(second, sweep / "runs" / "a")
        (sweep / "sweep.csv").write_text("run,status\na,done\n")
        (sweep / "summary.csv").write_text("method,mean\n<b>,0.5\n")
        self.assertEqual(call(sweep)[0], 0)
        text = (sweep / "report.html").read_text(encoding="utf-8")
        self.assertIn("&lt;b&gt;", text)
        self.assertIn("not in this report: unfinished", text)

    def test_names_are_text(self):
        photos = self.root / "photos"
        settings = Settings(
            dataset=report_files.write_pictures(photos), method="elr", network="small_cnn",
            cache_dir=f"{self.root}/cache",
        )  # fmt: skip
        run_dir = self.root / "hostile"
        dataset = report_files.write(run_dir, settings, predicted=np.arange(15) % 3)
        self.assertCountEqual(dataset.class_names, report_files.HOSTILE)
        self.assertEqual(call(run_dir)[0], 0)
        text = (run_dir / "report.html").read_text(encoding="utf-8")
        self.assertNotIn(report_files.HOSTILE[0], text)
        self.assertEqual(text.count("</script>"), text.count("<script"))
        found = rows_of(text)
        self.assertEqual(found["classes"], list(dataset.class_names))
        self.assertEqual((found["key"], found["pictures"]), ("file", "../photos"))
        self.assertIn("<i>/5</i>.png", found["columns"]["example"])
        names = json.loads(embedded(text, "figures"))["given-0"]["data"][0]["x"]
        self.assertIn("&lt;script&gt;alert(1)&lt;/script&gt;", names)  # Plotly reads markup

    @pytest.mark.slow
    def test_50_000_examples_fit_into_10_mb(self):
        rng = np.random.default_rng(0)
        n, classes = 50_000, [f"class {n}" for n in range(100)]
        path = self.root / "many.csv"
        files = [f"train/class {n % 100}/IMG_{n:08d}.jpg" for n in range(n)]
        given = rng.integers(0, 100, n)
        predicted = rng.integers(0, 100, n)
        report_files.record(path, np.arange(n), given, classes, predicted=predicted, files=files)
        run = collect.read_run(str(self.run_dir))
        many = {
            **run.__dict__,
            "examples": detection.read_examples(path),
            "result": {**run.result, "class_names": classes},
        }
        many["result"]["confusion_matrix"] = rng.integers(0, 100, (100, 100)).tolist()
        # Noise is what compresses worst.
        images = rng.integers(0, 256, (review.MOST_THUMBNAILS, 96, 96, 3), "uint8")
        run = collect.Run(**many)
        with mock.patch.object(review, "_thumbnails", lambda *_: review.sprite(images)):
            collection = collect.Collection("many", [run], [], [])
            text = page.render(collection, [collect.Data()], str(self.root / "many.html"))
        self.assertEqual(rows_of(text)["thumbnails"]["count"], 2000)
        self.assertLen(rows_of(text)["columns"]["example"], n)
        self.assertLess(len(text.encode()), 10e6)

    def test_earlier_corrections_are_kept(self):
        path = self.root / "corrections.csv"
        path.write_text("index,label\n0,3\n4,\n5,remove\n")
        run_dir = self.root / "corrected"
        report_files.write(run_dir, Settings(network="small_cnn", labels_csv=str(path)))
        self.assertEqual(call(run_dir)[0], 0)
        found = rows_of((run_dir / "report.html").read_text(encoding="utf-8"))
        expected = [["0", "3"], ["4", ""], ["5", "remove"]]
        self.assertEqual(found["earlier"], expected)
        self.assertNotIn(5, found["columns"]["example"])
        path.write_text("index,label\n0,9\n")  # the next round of the user
        self.assertEqual(call(run_dir)[0], 0)
        found = rows_of((run_dir / "report.html").read_text(encoding="utf-8"))
        self.assertEqual(found["earlier"], expected)
        self.assertEqual(found["thumbnails"]["count"], 1295)
        path.unlink()
        self.assertEqual(call(run_dir)[:2], (0, self.line(run_dir)))
        # A run of an earlier version has no copy, and needs the file.
        (run_dir / folder.CORRECTIONS).rename(path)
        self.assertEqual(call(run_dir)[0], 0)
        found = rows_of((run_dir / "report.html").read_text(encoding="utf-8"))
        self.assertEqual(found["earlier"], expected)
        path.unlink()
        code, _, err = call(run_dir)
        self.assertEqual(code, 2)
        self.assertLen(err, 1)
        self.assertIn("a review of this run would lose them", err[0])

    def line(self, run_dir):
        """Returns what the command prints about a report of one run."""
        size = (run_dir / "report.html").stat().st_size / 1e6
        return f"{run_dir}/report.html: 1 run, {size:.1f} MB. Open it in a browser.\n"

    def test_runs_of_the_same_data_share_it_and_others_load_none(self):
        sweep, loaded, loads = self.root / "shared", labeling.load_dataset, []
        for number, (noise, split) in enumerate(
            [("symmetric:0.4", None), ("symmetric:0.4", "train[:50%]"), (None, "train[:60%]")] * 2
        ):
            settings = Settings(network="small_cnn", noise=noise, train_split=split, seed=number)
            report_files.write(sweep / "runs" / str(number), settings)
        (sweep / "sweep.json").write_text("{}")

        def load(settings):
            gc.collect()
            self.assertEqual([one() for one in loads if one() is not None], [])
            dataset = loaded(settings)
            loads.append(weakref.ref(dataset))
            return dataset

        with mock.patch.object(labeling, "load_dataset", load):
            self.assertEqual(call(sweep)[0], 0)
        self.assertLen(loads, 2)
        figures = json.loads(
            embedded((sweep / "report.html").read_text(encoding="utf-8"), "figures")
        )
        names = {n: [bar["name"] for bar in figures[f"loss-{n}"]["data"][:2]] for n in range(6)}
        for number in (0, 3):
            self.assertEqual(names[number], ["right labels (779)", "wrong labels (518)"])
        for number in (1, 4):
            self.assertRegex(names[number][1], r"wrong labels \(259\)")
        for number in (2, 5):
            self.assertRegex(names[number][0], r"^labels \(")

    def test_class_numbers_do_not_depend_on_the_order_of_keys(self):
        run_dir = self.root / "sorted"
        shutil.copytree(self.run_dir, run_dir)
        result = json.loads((run_dir / folder.RESULT).read_text())
        recall = result["per_class_recall"]
        result["per_class_recall"] = {name: recall[name] for name in reversed(recall)}
        (run_dir / folder.RESULT).write_text(json.dumps(result))
        self.assertEqual(collect.read_run(str(run_dir)).class_names, self.dataset.class_names)
        self.write_result_of_an_earlier_version(run_dir, recall)
        self.assertEqual(collect.read_run(str(run_dir)).class_names, self.dataset.class_names)

    def write_result_of_an_earlier_version(self, run_dir, recall):
        result = folder.read_result(str(run_dir))
        del result["class_names"]
        folder.write_result(str(run_dir), {**result, "per_class_recall": recall})


class SweepTest(absltest.TestCase):
    HEADER = (
        "method,num_labels,protocol,mean,std,n,low,high,failed,missing,compared_with,"
        "difference_mean,difference_std,difference_n,difference_low,difference_high"
    )

    def write(self, **settings):
        """Writes a sweep of two methods and two seeds and returns its folder."""
        sweep = pathlib.Path(self.create_tempdir().full_path) / "few labels"
        for method in ("fixmatch", "supervised"):
            for seed in (0, 1):
                made = Settings(
                    method=method, network="small_cnn", num_labels=20, seed=seed, **settings
                )
                report_files.write(sweep / "runs" / f"{method}-{seed}", made)
        (sweep / "sweep.json").write_text("{}")
        lines = [
            self.HEADER,
            "fixmatch,20,last,0.73249,0.0311,2,0.45,1.01,0,1,method=supervised,0.0449999,0.018,2,-0.12,0.21",
            "supervised,20,last,0.6875,,1,,,0,0,,,,0,,",
        ]
        (sweep / "summary.csv").write_text("\n".join(lines) + "\n")
        Image.new("RGB", (4, 3)).save(sweep / "budget_curve.png")
        self.assertEqual(call(sweep)[0], 0)
        return sweep

    def test_the_summary_is_in_percent_without_empty_columns(self):
        rows = [row.split(",") for row in (self.write() / "summary.csv").read_text().splitlines()]
        found = summary.table(rows, {"last": "Last checkpoint"})
        names = ["method", "num labels", "protocol", "mean ± std, %", "95 % interval", "runs"]
        names += ["missing", "difference", "its 95 % interval", "pairs"]
        first = ["fixmatch", "20", "Last checkpoint", "73.25 ± 3.11", "45.00 to 101.00", "2", "1"]
        first += ["+4.50", "-12.00 to 21.00", "2"]
        second = ["supervised", "20", "Last checkpoint", "68.75", "", "1", "0", "", "", ""]
        self.assertEqual(found, [names, first, second])
        own = [["method", "mean"], ["<b>", "0.5"]]
        self.assertEqual(summary.table(own, {}), own)

    def test_the_page_of_a_sweep(self):
        sweep = self.write()
        text = (sweep / "report.html").read_text(encoding="utf-8")
        self.assertIn("4 runs of a sweep, which have in common:", text)
        self.assertIn("73.25 ± 3.11", text)
        picture = base64.b64encode((sweep / "budget_curve.png").read_bytes()).decode()
        self.assertIn(picture, text)
        # No run has these accuracies.
        self.assertNotIn("Median of the last 20", text)
        self.assertNotIn("Chosen by validation", text)
        review = f"python -m ssl_noisy.report {shlex.quote(str(sweep / 'runs' / 'fixmatch-0'))}"
        self.assertIn(html.escape(review).replace("&#x27;", "&#39;"), text)

    def test_runs_that_differ_in_seeds_share_a_color(self):
        sweep = self.write()
        figures = json.loads(
            embedded((sweep / "report.html").read_text(encoding="utf-8"), "figures")
        )
        lines = figures["accuracy"]["data"]
        names = ["fixmatch, 20 labels"] * 2 + ["supervised, 20 labels"] * 2
        self.assertEqual([line["name"] for line in lines], names)
        self.assertEqual([line["showlegend"] for line in lines], [True, False] * 2)
        colors = [line["line"]["color"] for line in lines]
        self.assertEqual(colors, ["--series-1"] * 2 + ["--series-2"] * 2)

    def test_groups_that_method_and_labels_do_not_tell_apart_keep_their_names(self):
        runs = [collect.read_run(str(path)) for path in sorted((self.write() / "runs").iterdir())]
        flags = [*runs[0].flags, "--learning_rate=0.1"]
        runs[1] = collect.Run(**{**runs[1].__dict__, "flags": flags})
        self.assertIsNone(charts.seed_groups(runs[:2]))
        names = [line["name"] for line in charts.accuracy(runs)["data"]]
        self.assertEqual(names, ["fixmatch-0", "fixmatch-1", "supervised-0", "supervised-1"])


class MistakesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)
        self.run_dir = self.root / "run"

    def write(self, **settings):
        report_files.write(self.run_dir, Settings(network="small_cnn", num_labels=20, **settings))

    def refuse(self, *arguments):
        before = sorted(self.root.rglob("*"))
        code, out, err = call(*arguments)
        self.assertEqual((code, out), (2, ""))
        self.assertLen(err, 1)
        self.assertEqual(sorted(self.root.rglob("*")), before)
        return err[0]

    def test_no_run(self):
        self.assertIn("Pass the folder of a run", self.refuse())
        self.assertIn("There is no folder", self.refuse(self.run_dir))
        self.run_dir.mkdir()
        self.assertIn("is empty, so it is not a run", self.refuse(self.run_dir))
        (self.run_dir / "notes.txt").write_text("mine")
        self.assertIn("has no flags.cfg, so it is not a run", self.refuse(self.run_dir))

    def test_unfinished_run(self):
        self.run_dir = self.root / "my runs"
        self.write()
        (self.run_dir / folder.RESULT).unlink()
        message = self.refuse(self.run_dir)
        self.assertIn("is unfinished", message)
        words = [f"--flagfile={self.run_dir}/flags.cfg", f"--run_dir={self.run_dir}"]
        self.assertEqual(shlex.split(message)[-2:], words)

    @parameterized.parameters(folder.RESULT, folder.METRICS, folder.EXAMPLES, folder.TIMING)
    def test_damaged_file(self, name):
        self.write()
        (self.run_dir / name).write_text("\x00{")
        message = self.refuse(self.run_dir)
        self.assertIn(name, message)

    def test_sweep_without_a_finished_run(self):
        (self.root / "runs").mkdir()
        (self.root / "sweep.json").write_text("{}")
        self.assertIn("has no finished run yet", self.refuse(self.root))

    def test_output(self):
        self.write()
        self.assertIn("must end in .html", self.refuse(self.run_dir, "--output=report.pdf"))
        (self.root / "file").write_text("")
        message = self.refuse(self.run_dir, f"--output={self.root}/file/report.html")
        self.assertIn("Cannot write", message)
        self.assertIn("given once", self.refuse(self.run_dir, self.run_dir))

    def test_data_that_is_gone(self):
        photos = self.root / "photos"
        self.write_photos(photos)
        shutil.rmtree(photos)
        code, out, _ = call(self.run_dir)
        self.assertEqual(code, 0)
        self.assertIn("no pictures, because the data cannot be loaded", out)
        with mock.patch.object(labeling, "load_dataset", side_effect=UserError("Two\nlines.")):
            _, out, _ = call(self.run_dir)
        self.assertIn("cannot be loaded. Two lines.\n", out)
        text = (self.run_dir / "report.html").read_text(encoding="utf-8")
        self.assertIn("There are no small pictures", text)
        self.assertIsNone(rows_of(text)["thumbnails"])
        self.assertLen(rows_of(text)["columns"]["example"], 15)

    def write_photos(self, photos):
        report_files.write(
            self.run_dir,
            Settings(
                dataset=report_files.write_pictures(photos),
                network="small_cnn",
                cache_dir=f"{self.root}/cache",
            ),
        )

    def test_packages_that_are_missing(self):
        self.write()
        with mock.patch.dict("sys.modules", {"plotly": None, "plotly.offline": None}):
            self.assertIn("pip install 'ssl_noisy[report]'", self.refuse(self.run_dir))


class ChartsTest(absltest.TestCase):
    def test_matrix(self):
        figure = charts.matrix([[3, 1], [0, 0]], ["a", "b"], "true class", "predicted class")
        data = figure["data"][0]
        self.assertEqual(data["z"], [[0.866, 0.5], [0.0, 0.0]])  # roots of 3/4 and 1/4
        self.assertEqual(data["text"], [["3", "1"], ["", ""]])

    def test_clusters_are_in_the_order_of_their_classes(self):
        found = {"class_of_cluster": [None, "b", "a"]}
        found["counts_by_class"] = {"a": [1, 2, 4], "b": [0, 3, 0]}
        figure = charts.clusters(found, ("a", "b"))
        (data,) = figure["data"]
        self.assertEqual((data["x"], data["y"]), (["2", "1", "0"], ["a", "b"]))
        self.assertEqual(data["customdata"], [[4, 2, 1], [0, 3, 0]])
        self.assertEqual(figure["layout"]["xaxis"]["tickvals"], ["2", "1", "0"])

    def test_calibration(self):
        count = [0] * 14 + [4]
        right, confidence = [0] * 14 + [3], [0.0] * 14 + [3.9]
        figure = charts.calibration({"count": count, "right": right, "confidence": confidence})
        bars = figure["data"][0]
        self.assertEqual((bars["x"], bars["y"]), ([14.5 / 15], [0.75]))
        self.assertEqual(bars["customdata"], [[4, 0.975]])

    def test_given_against_predicted(self):
        examples = {
            "given_label": np.array([0, 0, 1, 1]),
            "predicted_label": np.array([1, 1, -1, 2]),  # unknown, and AUM's extra class
        }
        counts = charts.given_against_predicted(examples, ["a", "b"])
        self.assertEqual(counts.tolist(), [[0, 2], [0, 0]])


if __name__ == "__main__":
    absltest.main()
