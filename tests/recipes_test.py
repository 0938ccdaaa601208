# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import os
import re

from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import __main__ as listing
from ssl_noisy import command, methods, networks, recipes, settings

RECIPES = [(path.stem, path) for path in recipes.paths()]
# What a recipe's name calls a kind of noise, where that is not its own name.
KINDS = {
    "symmetric": "sym",
    "symmetric_inclusive": "sym",
    "asymmetric": "asym",
    "legacy_blocks": "asym",
}


class RecipeTest(parameterized.TestCase):
    def test_there_are_recipes_for_every_published_setting(self):
        names = {name for name, _ in RECIPES}
        for dataset, budgets in (("cifar10", (40, 250, 4000)), ("cifar100", (400, 2500, 10000))):
            for budget in budgets:
                self.assertIn(f"fixmatch_{dataset}_{budget}_google_code", names)
                self.assertIn(f"fixmatch_{dataset}_{budget}_ctaugment", names)
                self.assertIn(f"supervised_{dataset}_{budget}_usb", names)
                for method in ("pseudo_label", "mean_teacher", "mixmatch", "remixmatch"):
                    self.assertIn(f"{method}_{dataset}_{budget}_torchssl", names)
                self.assertIn(f"flexmatch_{dataset}_{budget}_torchssl", names)
                for method in ("freematch", "softmatch"):
                    self.assertIn(f"{method}_{dataset}_{budget}_usb", names)
        for budget in (250, 500, 1000, 2000, 4000):
            self.assertIn(f"uda_cifar10_{budget}_google_code", names)
        for setting in ("cifar10_500", "cifar10_1000", "cifar10_4000"):
            self.assertIn(f"arazo_{setting}_authors", names)
        for setting in ("cifar100_4000", "cifar100_10000"):
            self.assertIn(f"arazo_{setting}_authors", names)
        for method in methods.names():
            self.assertTrue({f"{method}_digits_20", f"{method}_digits_sym40"} & names, method)
        for method in ("supervised", "mixup", "beta_mixture", "aum"):
            for setting in ("cifar10_sym40", "cifar10n_worse"):
                self.assertIn(f"{method}_{setting}_quick", names)
        for variant in ("m_dyr_h", "md_dyr_sh"):
            for rate in (20, 50, 80, 90):
                self.assertIn(f"beta_mixture_cifar10_sym{rate}_{variant}", names)
                self.assertIn(f"beta_mixture_cifar100_sym{rate}_{variant}", names)
        for setting in ("sym20", "sym40", "sym60", "sym80", "asym40"):
            self.assertIn(f"elr_cifar10_{setting}_authors", names)
            self.assertIn(f"elr_cifar100_{setting}_authors", names)
        for setting in ("_instance20", "_instance40", "_instance60", "_sym40", "n_worse"):
            self.assertIn(f"cores_cifar10{setting}_authors", names)
        self.assertIn(recipes.default().stem, names)

    @parameterized.named_parameters(RECIPES)
    def test_it_parses_and_names_its_method_and_budget(self, path):
        values = flags.FlagValues()
        settings.define_flags(values)
        made = command.parse_settings(["train", f"--flagfile={path}"], values)
        labels = "n_worse" if made.noise == "cifarn:worse_label" else f"_{made.num_labels}"
        if made.noise and labels != "n_worse":
            kind, rate = made.noise.split(":")
            labels = f"_{KINDS.get(kind, kind)}{round(float(rate) * 100)}"
        self.assertStartsWith(path.stem, f"{made.method}_{made.dataset}{labels}")
        self.assertIn(made.network.split("_")[0], {n.split("_")[0] for n in networks.names()})

    @parameterized.named_parameters(RECIPES)
    def test_its_header_says_what_to_expect(self, path):
        text = path.read_text()
        header = text[: text.index("\n--")]
        self.assertTrue(all(line.startswith("#") for line in header.splitlines()))
        self.assertIn(f"--flagfile=flags/{path.name}", header)
        self.assertRegex(header, "# Published: ")
        self.assertRegex(header, "# Measured: ")

    @parameterized.named_parameters(RECIPES)
    def test_it_falls_in_none_of_absls_traps(self, path):
        for line in path.read_text().splitlines():
            self.assertRegex(line, r"^(#.*|--(no)?\w+|--\w+=\S+)$", "one flag a line, no trailer")
            self.assertIsNone(re.match(r"--(seed|label_seed|run_dir|data_dir|flagfile)\b", line))

    def test_they_have_the_settings_of_their_source(self):
        def lines(name):
            return (recipes.folder() / f"{name}.cfg").read_text().splitlines()

        for budget in (400, 2500, 10000):  # TorchSSL has a weight of 100, the default, for both
            mixmatch = lines(f"mixmatch_cifar100_{budget}_torchssl")
            self.assertFalse([line for line in mixmatch if "unsupervised_weight" in line])
            self.assertIn("--nomixup_per_image", mixmatch)
            remixmatch = lines(f"remixmatch_cifar100_{budget}_torchssl")
            self.assertIn("--nomixup_per_image", remixmatch)
        highest = {"--clean_threshold=0.6", "--loss_window=5", "--unsupervised_weight=50.0"}
        self.assertLessEqual(highest, set(lines("divide_mix_cifar10_sym90_authors")))
        elr = {"--target_momentum=0.9", "--early_learning_weight=7.0", "--steps=52800"}
        self.assertLessEqual(elr, set(lines("elr_cifar100_asym40_authors")))
        elr = {"--target_momentum=0.9", "--early_learning_weight=1.0", "--steps=42240"}
        self.assertLessEqual(elr, set(lines("elr_cifar10_asym40_authors")))

    def test_every_network_builds(self):
        names = set()
        for _, path in RECIPES:
            names |= set(re.findall("--network=(.*)", path.read_text()))
        self.assertGreater(len(names), 10)
        for name in names:
            network = networks.build(name, (32, 32, 3), 10)
            self.assertEqual(network.output_shape, (None, 10))

    @parameterized.named_parameters(RECIPES)
    def test_those_named_after_code_have_its_network_and_say_how_they_differ(self, path):
        method, source, text = (
            path.stem.split("_cifar")[0],
            path.stem.split("_")[-1],
            path.read_text(),
        )
        wide = "wrn_28_8" if "cifar100" in path.stem else "wrn_28_2"
        imagenet = "imagenet" if "cifar10_" in path.stem else "dataset"
        wanted = {
            "torchssl": {
                f"network={wide}_torchssl",
                "normalization=dataset",
                "steps_per_epoch=5000",
            },
            "usb": {"network=wrn_28_2_usb", f"normalization={imagenet}", "steps_per_epoch=5120"},
        }.get(source, set())
        if method == "uda" and source == "code":
            wanted = {"network=wrn_28_2_uda", "normalization=dataset"}
        if method == "arazo" and source == "authors":
            wanted = {"network=cnn_13", "normalization=dataset"}
        if method == "co_teaching" and "cifar10_" in path.stem:
            wanted = {"network=cnn_9", "weak_augmentation=none"}
        self.assertLessEqual({f"--{flag}" for flag in wanted}, set(text.splitlines()))
        if wanted or source in ("code", "ctaugment"):
            self.assertRegex(text, "\n# Departures")

    def test_wide_networks_and_decay_of_cifar100(self):
        for name, path in RECIPES:
            if "cifar100" in name and not name.startswith(("arazo", "beta_mixture", "aum")):
                self.assertIn("--weight_decay=0.001\n", path.read_text())
            if name.startswith("fixmatch_cifar100"):
                self.assertRegex(path.read_text(), "--network=wrn_28_8(_torchssl)?\n")


class ListingTest(absltest.TestCase):
    def call(self, *arguments):
        """Returns the exit code, the lines of the output, and those of standard error."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = listing.main(arguments)
            except SystemExit as end:
                code = end.code
        return code, out.getvalue().splitlines(), err.getvalue().splitlines()

    def test_it_names_commands_methods_papers_and_networks_on_one_screen(self):
        code, lines, _ = self.call()
        text = "\n".join(lines)
        self.assertEqual(code, 0)
        self.assertLessEqual(len(lines), 40)
        self.assertLessEqual(max(map(len, lines)), 100)
        for name in (*methods.names(), *networks.names(), "train", "benchmark", "--recipes"):
            self.assertIn(name, text)
        self.assertIn("https://arxiv.org/abs/2001.07685", text)

    def test_it_lists_all_recipes_with_their_titles(self):
        code, lines, _ = self.call("--recipes")
        self.assertEqual(code, 0)
        self.assertEqual([x for x in lines[1:] if x[0] != " "], [name for name, _ in RECIPES])
        self.assertLessEqual(max(map(len, lines[1:])), 100)
        text = " ".join(" ".join(lines).split())
        for _, path in RECIPES:
            self.assertIn(recipes.title(path), text)

    def test_the_command_it_shows_names_the_folder(self):
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        for folder in (recipes.folder().parent, self.create_tempdir().full_path):
            os.chdir(folder)
            _, lines, _ = self.call("--recipes")
            shown = lines[0].partition("--flagfile=")[2].replace("NAME", RECIPES[0][0])
            self.assertTrue(os.path.samefile(shown, RECIPES[0][1]))

    def test_it_lists_the_recipes_that_contain_all_words(self):
        for words in (("UDA", "quick"), ("quick", "uda")):
            _, lines, _ = self.call("--recipes", *words)
            found = [line for line in lines[1:] if line[0] != " "]
            self.assertEqual(found, ["uda_cifar10_250_quick", "uda_digits_20"])
        self.assertEqual(self.call("--recipes=uda"), self.call("--recipes", "uda"))
        self.assertEqual(self.call("--recipes", "1904.12848"), self.call("--recipes", "uda"))

    def test_words_that_match_nothing_are_an_error_with_a_suggestion(self):
        for words, message in {
            ("fixmtch",): "No recipe contains 'fixmtch'. Did you mean 'fixmatch'?",
            ("uda", "zzzz"): "No recipe contains 'zzzz'. Use --recipes alone to list them all.",
            ("uda", "aum"): "No recipe contains all of: uda aum. Use fewer words.",
        }.items():
            code, lines, errors = self.call("--recipes", *words)
            self.assertEqual((code, lines, errors), (2, [], [f"ssl_noisy: {message}"]))

    def test_help_and_unknown_arguments(self):
        code, lines, _ = self.call("--help")
        self.assertEqual(code, 0)
        self.assertIn("--recipes", "\n".join(lines))
        code, lines, errors = self.call("fixmatch")
        self.assertEqual((code, lines), (2, []))
        self.assertEqual(
            errors,
            ["ssl_noisy: unrecognized arguments: fixmatch. See python -m ssl_noisy --help"],
        )


if __name__ == "__main__":
    absltest.main()
