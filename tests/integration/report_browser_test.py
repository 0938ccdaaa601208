# SPDX-License-Identifier: Apache-2.0
"""The report in a browser: opened from disk, reviewed by keyboard, exported and trained on."""

import contextlib
import csv
import io
import pathlib
import shutil
import tempfile

import commands
import numpy as np
import report_files
from absl import flags
from absl.testing import absltest, parameterized
from playwright.sync_api import expect, sync_playwright

from ssl_noisy import report
from ssl_noisy.settings import Settings

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
SMALL = ("--network=small_cnn", "--steps=20", "--steps_per_epoch=20", "--noplots")

CONTRAST = (pathlib.Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


def make(*arguments):
    values = flags.FlagValues()
    report.define_flags(values)
    with contextlib.redirect_stdout(io.StringIO()):
        report.main(report.read_flags(["report", *map(str, arguments)], values))


class BrowserTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        expect.set_options(timeout=60_000)  # ms; a busy machine is slow
        cls.root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.data = report_files.write_pictures(cls.root / "photos", count=30)
        cls.settings = Settings(
            dataset=cls.data, network="small_cnn", cache_dir=f"{cls.root}/cache", method="elr"
        )
        cls.run_dir = cls.root / "run"
        # The three most suspicious are 5, 6 and 7, which are of the classes 0, 1 and 2 in the
        # order of HOSTILE.
        quality = np.concatenate([np.linspace(0.9, 1, 2), np.linspace(0.1, 0.9, 85)])
        names = sorted(report_files.HOSTILE)
        given = [names.index(report_files.HOSTILE[n % 3]) for n in range(3, 90)]
        predicted = (np.array(given) + 1) % 3
        report_files.write(cls.run_dir, cls.settings, predicted=predicted, quality=quality)
        make(cls.run_dir)
        playwright = cls.enterClassContext(sync_playwright())
        chromium = shutil.which("chromium")
        cls.browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        cls.addClassCleanup(cls.browser.close)

    def open(self, path=None, **options):
        """Opens a report in a new context, and collects what must not happen."""
        context = self.browser.new_context(**options)
        self.addCleanup(context.close)
        page = context.new_page()
        self.trouble = []
        page.on("console", lambda message: self.trouble.append(message.text))
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", lambda dialog: self.trouble.append(dialog.message))
        page.on("request", self.check_request)
        page.goto((path or self.run_dir / "report.html").as_uri())
        self.wait(page)
        return page

    def check_request(self, request):
        if request.url.partition(":")[0] not in ("file", "data", "blob"):
            self.trouble.append(request.url)

    def wait(self, page):
        page.wait_for_selector("html[data-charts=ready]", state="attached")
        if page.query_selector("#rows"):
            page.wait_for_selector("html[data-review=ready]", state="attached")

    def tearDown(self):
        super().tearDown()
        self.assertEqual(self.trouble, [])

    def name(self, page):
        return page.text_content("#name")

    def focus(self, page):
        page.focus("#tiles [aria-selected=true]")

    def export(self, page):
        with page.expect_download() as download:
            page.click("#export")
        self.assertEqual(download.value.suggested_filename, "corrections.csv")
        path = pathlib.Path(self.create_tempdir().full_path) / "corrections.csv"
        download.value.save_as(path)
        return path

    def test_charts_are_drawn(self):
        page = self.open()
        for place in page.query_selector_all("[data-figure]"):
            place.scroll_into_view_if_needed()
            name = place.get_attribute("data-figure")
            page.wait_for_selector(f"[data-figure={name}] .main-svg")
        labels = "[data-figure=confusion-0] .xtick"
        shown = page.eval_on_selector_all(labels, "all => all.map((one) => one.textContent)")
        self.assertCountEqual(filter(None, shown), report_files.HOSTILE)
        line = "[data-figure=accuracy] .js-line"
        color = page.eval_on_selector(line, "(one) => getComputedStyle(one).stroke")
        self.assertEqual(color, "rgb(31, 95, 139)")  # --series-1
        self.assertIn("75.00 %", page.text_content("#accuracy"))

    def test_review_by_keyboard_survives_a_reload(self):
        page = self.open()
        self.assertEqual(self.name(page), "file <i>/5</i>.png")
        self.assertIn("In 20 predictions during training", page.text_content("#why"))
        self.focus(page)
        suggested = page.text_content("#suggested")
        page.keyboard.press("t")
        self.assertEqual(self.name(page), "file <i>/6</i>.png")  # the next one
        self.assertIn("Decided: change to", page.text_content("#announce"))
        self.assertIn("1 of", page.text_content("#progress-text"))
        page.keyboard.press("k")
        page.keyboard.press("u")
        page.keyboard.press("r")
        page.keyboard.press("ArrowLeft")
        self.assertEqual(page.text_content("#decision"), "Decided: removed")
        page.reload()
        self.wait(page)
        marks = page.eval_on_selector_all(".mark", "all => all.map((one) => one.textContent)")
        self.assertEqual(marks[:5], [suggested, "kept", "unlabeled", "removed", ""])
        page.keyboard.press("k")  # outside of the review, a key does nothing
        self.assertIn("4 of", page.text_content("#progress-text"))
        self.focus(page)
        page.keyboard.press("z")
        self.assertEqual(self.name(page), "file <i>/8</i>.png")
        self.assertEqual(page.text_content("#decision"), "Undecided")
        self.assertIn("3 of", page.text_content("#progress-text"))
        page.keyboard.press("c")
        page.keyboard.type("no class")
        page.keyboard.press("Enter")
        self.assertIn("3 of", page.text_content("#progress-text"))
        page.fill("#class", report_files.HOSTILE[1])
        page.keyboard.press("Enter")
        self.assertIn("4 of", page.text_content("#progress-text"))
        with open(self.export(page), encoding="utf-8", newline="") as file:
            found = {row["file"]: row["label"] for row in csv.DictReader(file)}
        self.assertEqual(found["<i>/5</i>.png"], suggested)
        self.assertEqual(found["<i>/7</i>.png"], "")
        self.assertEqual(found["<i>/8</i>.png"], report_files.HOSTILE[1])
        self.assertLen(found, 4)

    def test_two_tabs_share_their_decisions(self):
        first = self.open()
        second = self.another_tab(first)
        first.click("[data-act=remove]")
        expect(second.locator(".mark").nth(0)).to_have_text("removed")
        self.assertEqual(second.text_content("#decision"), "Decided: removed")
        second.click(".tile >> nth=1")
        second.click("[data-act=keep]")
        second.click("[data-act=keep]")
        expect(first.locator(".mark").nth(2)).to_have_text("kept")
        self.assertIn("3 of", first.text_content("#progress-text"))
        with open(self.export(first), encoding="utf-8", newline="") as file:
            found = {row["file"]: row["label"] for row in csv.DictReader(file)}
        self.assertEqual(list(found), [f"<i>/{n}</i>.png" for n in (5, 6, 7)])
        # Each tab takes back what was decided there, unless the other one has decided anew.
        second.click("#undo")
        expect(first.locator(".mark").nth(2)).to_have_text("")
        second.click(".tile >> nth=0")
        second.click("[data-act=unlabel]")
        expect(first.locator(".mark").nth(0)).to_have_text("unlabeled")
        self.assertTrue(first.is_disabled("#undo"))
        third = self.another_tab(first)
        marks = third.eval_on_selector_all(".mark", "all => all.map((one) => one.textContent)")
        self.assertEqual(marks[:4], ["unlabeled", "kept", "", ""])

    def another_tab(self, page):
        other = page.context.new_page()
        other.on("console", lambda message: self.trouble.append(message.text))
        other.on("pageerror", lambda error: self.trouble.append(str(error)))
        other.goto(page.url)
        self.wait(other)
        return other

    def test_decisions_of_an_earlier_version(self):
        page = self.open()
        page.evaluate(
            """() => {
              const { place } = window.labelReview.decisions;
              const made = [[1, { act: "unlabel", label: null }], [3, { act: "class", label: 2 }]];
              localStorage.setItem(place, JSON.stringify({ made, past: [] }));
            }"""
        )
        for _ in range(2):
            page.reload()
            self.wait(page)
            with open(self.export(page), encoding="utf-8", newline="") as file:
                found = {row["file"]: row["label"] for row in csv.DictReader(file)}
            names = sorted(report_files.HOSTILE)
            self.assertEqual(found, {"<i>/6</i>.png": "", "<i>/8</i>.png": names[2]})

    def test_filters_and_order(self):
        page = self.open()
        page.select_option("#show", "all")
        self.assertIn("87 labels of 87", page.text_content("#count"))
        self.assertEqual(page.text_content("#page"), "Page 1 of 2")
        page.click("#next")
        self.assertEqual(page.locator(".tile").count(), 27)
        page.select_option("#sort", "mean loss, highest first")
        losses = []
        self.focus(page)
        for _ in range(5):
            losses.append(float(page.text_content("#evidence dt:text('mean loss') + dd")))
            page.keyboard.press("ArrowRight")
        self.assertEqual(losses, sorted(losses, reverse=True))
        pair = page.eval_on_selector("#pair option:nth-child(2)", "one => [one.value, one.text]")
        page.select_option("#pair", pair[0])
        self.assertEqual(pair[1].rpartition(" (")[0], page.text_content(".pair >> nth=0"))
        page.select_option("#show", "decided")
        self.assertIn("No label matches", page.text_content("#frame"))

    def test_exported_corrections_train(self):
        page = self.open()
        page.click("[data-act=take]")
        page.click("[data-act=unlabel]")
        page.click("[data-act=remove]")
        page.click("[data-act=keep]")
        path = self.export(page)
        second = self.root / "second"
        code, out, err = commands.call(
            f"--dataset={self.data}", f"--cache_dir={self.root}/cache", "--method=supervised",
            *SMALL, f"--labels_csv={path}", f"--run_dir={second}",
        )  # fmt: skip
        self.assertEqual((code, err), (0, []))
        self.assertIn("labels changed: 2, examples removed: 1", out)
        with open(second / "examples.csv", encoding="utf-8", newline="") as file:
            after = {row["file"]: row["given_class"] for row in csv.DictReader(file)}
        with open(self.run_dir / "examples.csv", encoding="utf-8", newline="") as file:
            before = {row["file"]: row for row in csv.DictReader(file)}
        first = before["<i>/5</i>.png"]
        self.assertEqual(after["<i>/5</i>.png"], first["predicted_class"])
        self.assertEqual(after["<i>/8</i>.png"], before["<i>/8</i>.png"]["given_class"])
        self.assertNotIn("<i>/6</i>.png", after)
        self.assertNotIn("<i>/7</i>.png", after)
        # A report of the second run exports both rounds.
        make(second)
        page = self.open(second / "report.html")
        page.select_option("#show", "all")
        page.click("[data-act=keep]")
        with open(self.export(page), encoding="utf-8", newline="") as file:
            self.assertContainsSubset(
                ["<i>/7</i>.png"], [row["file"] for row in csv.DictReader(file)]
            )

    def test_data_without_files_uses_the_index(self):
        run_dir = self.root / "digits"
        report_files.write(run_dir, Settings(network="small_cnn", num_labels=50))
        make(run_dir)
        page = self.open(run_dir / "report.html")
        index = self.name(page).removeprefix("index ")
        self.assertEqual(page.locator(".tile canvas").count(), page.locator(".tile").count())
        page.click("[data-act=remove]")
        path = self.export(page)
        self.assertEqual(path.read_text(), f"index,label\n{index},remove\n")
        code, out, err = commands.call(
            "--method=supervised", *SMALL, f"--labels_csv={path}", f"--run_dir={self.root}/third"
        )
        self.assertEqual((code, err), (0, []))
        self.assertIn("examples removed: 1", out)

    def test_pictures_come_from_the_folder(self):
        page = self.open()
        page.locator("#frame img").scroll_into_view_if_needed()
        for _ in range(100):
            width = page.eval_on_selector("#frame img", "(image) => image.naturalWidth")
            if width:
                break
            page.wait_for_timeout(100)  # a lazy picture loads when it is in view
        self.assertEqual(width, 20)  # of the file; the small picture in the page is another one

    @parameterized.parameters("light", "dark")
    def test_contrast(self, scheme):
        page = self.open(color_scheme=scheme)
        page.click("[data-act=take]")
        for details in page.query_selector_all("details:not([open]) > summary"):
            details.click()
        found = page.evaluate(CONTRAST)
        self.assertGreater(len(found), 100)
        self.assertEqual([one for one in found if one["ratio"] < 4.5], [])

    def test_phone(self):
        page = self.open(**PHONE)
        self.assertEqual(page.evaluate("document.documentElement.scrollWidth"), 390)
        for button in page.query_selector_all("#review button"):
            self.assertGreaterEqual(button.bounding_box()["height"], 40)

    def test_without_storage(self):
        page = self.open()
        page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
        page.click("[data-act=keep]")
        self.assertTrue(page.is_visible("#storage"))

    def test_several_runs(self):
        other = self.root / "--other"
        report_files.write(other, Settings(network="small_cnn", noise="symmetric:0.4"))
        output = self.root / "both.html"
        make(self.run_dir, other, f"--output={output}")
        page = self.open(output)
        page.click("#runs summary >> nth=1")
        page.locator("[data-figure=loss-1]").scroll_into_view_if_needed()
        page.wait_for_selector("[data-figure=loss-1] .main-svg")
        self.assertIn("--other", page.text_content("[data-figure=accuracy]"))


if __name__ == "__main__":
    absltest.main()
