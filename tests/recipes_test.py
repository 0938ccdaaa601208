# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import fnmatch
import functools
import io
import os
import pathlib
import re

import pytest
from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import __main__ as listing
from ssl_noisy import command, methods, networks, recipes, run_flags

RECIPES = [(path.stem, path) for path in recipes.paths()]
OTHER_RUNS = ("--features=", "--initial_weights=", "--teacher=")  # what a run may build on
BUDGETS = {"cifar10": (40, 250, 4000), "cifar100": (400, 2500, 10000)}
# What the name of a recipe calls a kind of noise, if not by its own name.
KINDS = {
    "symmetric": "sym",
    "symmetric_inclusive": "sym",
    "asymmetric": "asym",
    "legacy_blocks": "asym",
}


@functools.cache
def parsed(path, *arguments):
    """Returns the `Settings` of a recipe followed by `arguments`."""
    values = flags.FlagValues()
    run_flags.define_flags(values)
    return command.parse_settings(["train", f"--flagfile={path}", *arguments], values)


def published(name):
    """Returns the budgets or noise rates whose figures the recipe `name` lists, in its order."""
    path = recipes.folder() / f"{name}.cfg"
    return tuple(float(re.search(r"[\d.]+$", flag)[0]) for flag in recipes.figures(path))


class RecipeTest(parameterized.TestCase):
    def test_there_are_recipes_for_every_published_setting(self):
        for dataset, budgets in BUDGETS.items():
            for name in (
                *(f"fixmatch_{dataset}_{source}" for source in ("google_code", "ctaugment")),
                *(f"{method}_{dataset}_usb" for method in ("supervised", "freematch", "softmatch")),
                *(
                    f"{method}_{dataset}_torchssl"
                    for method in ("pseudo_label", "mean_teacher", "mixmatch", "remixmatch")
                ),
                *(f"{method}_{dataset}_torchssl" for method in ("fixmatch", "flexmatch")),
            ):
                self.assertEqual(published(name), budgets, name)
            for variant in ("m_dyr_h", "md_dyr_sh"):
                rates = published(f"beta_mixture_{dataset}_sym_{variant}")
                self.assertEqual(rates, (0.2, 0.5, 0.8, 0.9))
            self.assertEqual(published(f"elr_{dataset}_sym_authors"), (0.2, 0.4, 0.6, 0.8))
        self.assertEqual(published("fixmatch_cifar10_paper"), BUDGETS["cifar10"])
        self.assertEqual(published("uda_cifar10_google_code"), (250, 500, 1000, 2000, 4000))
        self.assertEqual(published("divide_mix_cifar10_sym_authors"), (0.5, 0.8))
        self.assertEqual(published("cores_cifar10_instance_authors"), (0.2, 0.4, 0.6))

        names = {name for name, _ in RECIPES}
        for setting in ("cifar10_500", "cifar10_1000", "cifar10_4000"):
            self.assertIn(f"arazo_{setting}_authors", names)
        for setting in ("cifar100_4000", "cifar100_10000"):
            self.assertIn(f"arazo_{setting}_authors", names)
        for method in methods.names():
            own = {f"{method}_digits_20", f"{method}_digits_sym40"}
            if not methods.get(method).needs_labels:
                own = {f"{method}_digits_quick"}
            self.assertTrue(own & names, method)
        for method in ("supervised", "mixup", "beta_mixture", "aum"):
            for setting in ("cifar10_sym40", "cifar10n_worse"):
                self.assertIn(f"{method}_{setting}_quick", names)
        for name in ("elr_cifar10_asym40", "elr_cifar100_asym40", "cores_cifar10_sym40"):
            self.assertIn(f"{name}_authors", names)
        for rate in (20, 90):
            self.assertIn(f"divide_mix_cifar10_sym{rate}_authors", names)
        self.assertIn("cores_cifar10n_worse_authors", names)
        for setting in ("cifar10_sym50", "cifar100_sym90"):
            self.assertIn(f"cross_split_{setting}_authors", names)
        for setting in ("cifar10n_worse", "cifar100n"):
            self.assertIn(f"promix_{setting}_authors", names)
        for step in ("simclr_cifar10", "supervised_cifar10_4000", "distill_cifar10"):
            self.assertIn(f"{step}_simclr_v2", names)
        for name in ("simclr_cifar10_scan", "moco_v2_cifar10_demo", "rotnet_cifar10_authors"):
            self.assertIn(name, names)
        for name in ("scan_cifar10_authors", "self_label_cifar10_authors"):
            self.assertIn(name, names)
        self.assertIn(recipes.default().stem, names)

    @parameterized.named_parameters(RECIPES)
    def test_it_parses_and_names_its_method_and_budget(self, path):
        made = parsed(path)
        made.resolved()
        noise, _, rate = (made.noise or "").partition(":")
        if noise == "cifarn":
            labels = {"worse_label": "n_worse", "noisy_label": "n"}[rate]
        elif recipes.figures(path):  # the name leaves out what the command chooses
            labels = f"_{KINDS.get(noise, noise)}_" if noise else "_"
        elif noise:
            labels = f"_{KINDS.get(noise, noise)}{round(float(rate) * 100)}"
        else:
            is_all = made.num_labels is None and not made.learner_class.needs_labels
            labels = "_" if is_all else f"_{made.num_labels}"
        self.assertStartsWith(path.stem, f"{made.method}_{made.dataset}{labels}")
        self.assertIn(made.network.split("_")[0], {n.split("_")[0] for n in networks.names()})

    @parameterized.named_parameters(RECIPES)
    def test_its_header_says_what_to_expect(self, path):
        header = recipes.header(path)
        lines = header.splitlines()
        self.assertTrue(all(line.startswith("# ") for line in lines))
        found = re.findall(r"^# (Run|Published|Departures|Measured)\b.*: \S", header, re.M)
        self.assertEqual(found, ["Run", "Published", "Departures", "Measured"])
        self.assertRegex(recipes.title(path), r"\(.+, (19|20)\d\d\b.*\)")  # the paper
        for line in lines:
            if "python -m" not in line:
                self.assertLessEqual(len(line), 100)

    @parameterized.named_parameters(RECIPES)
    def test_its_command_runs_it(self, path):
        (shown,) = re.findall("^# Run: python -m ssl_noisy.train (.*)$", recipes.header(path), re.M)
        file, *arguments = shown.split()
        self.assertEqual(file, f"--flagfile=flags/{path.name}")
        others = [argument for argument in arguments if argument.startswith(OTHER_RUNS)]
        cls = parsed(path).learner_class
        needs = (cls.needs_features, cls.finds_clusters, cls.needs_teacher)
        needed = {flag for flag, is_needed in zip(OTHER_RUNS, needs) if is_needed}
        self.assertContainsSubset(needed, {other.partition("=")[0] + "=" for other in others})
        made = parsed(path, *arguments)
        self.assertEqual(f"--seed={made.seed}", arguments[-1])
        # Without the flag that the command shows, the recipe does the same. Runs that it builds on
        # are not part of it.
        self.assertEqual(made, parsed(path, *others, arguments[-1]))
        self.assertLen(arguments, len(others) + (2 if recipes.figures(path) else 1))

    @parameterized.named_parameters(RECIPES)
    def test_every_figure_that_it_lists_can_be_run(self, path):
        listed = recipes.figures(path)
        text = recipes.header(path)
        self.assertEqual(text.count(" (default): "), 1 if listed else 0)
        for flag in listed:
            name, value = flag.lstrip("-").split("=")
            made = parsed(path, flag)
            self.assertEqual(str(getattr(made, name)), value)
            default = dataclasses.replace(made, **{name: getattr(parsed(path), name)})
            self.assertEqual(default, parsed(path))
            self.assertEqual(f"#   {flag} (default): " in text, made == parsed(path))

    @parameterized.parameters(
        ("fixmatch_cifar10_torchssl", "--num_labels=4000", "4.21 +- 0.08 % (4.46 +- 0.11 %)"),
        ("remixmatch_cifar100_torchssl", "--num_labels=400", "42.75 +- 1.05 %"),
        ("supervised_cifar10_usb", "--num_labels=40", "77.58 +- 1.82 %"),
        ("uda_cifar10_google_code", "--num_labels=250", "5.43 +- 0.96 %"),
        ("elr_cifar10_sym_authors", "--noise=symmetric_inclusive:0.6", "88.87 % (86.12 %)"),
    )
    def test_published_figures(self, name, flag, figure):
        self.assertEqual(recipes.figures(recipes.folder() / f"{name}.cfg")[flag], figure)

    @parameterized.named_parameters(RECIPES)
    def test_it_falls_in_none_of_absls_traps(self, path):
        for line in path.read_text().splitlines():
            self.assertRegex(line, r"^(#.*|--(no)?\w+|--\w+=\S+)$", "one flag a line, no trailer")
            self.assertIsNone(re.match(r"--(seed|label_seed|run_dir|data_dir|flagfile)\b", line))

    def test_they_have_the_settings_of_their_source(self):
        def lines(name):
            return (recipes.folder() / f"{name}.cfg").read_text().splitlines()

        mixmatch = lines("mixmatch_cifar100_torchssl")  # TorchSSL's weight is 100, the default
        self.assertFalse([line for line in mixmatch if "unsupervised_weight" in line])
        self.assertIn("--nomixup_per_image", mixmatch)
        self.assertIn("--nomixup_per_image", lines("remixmatch_cifar100_torchssl"))
        highest = {"--clean_threshold=0.6", "--loss_window=5", "--unsupervised_weight=50.0"}
        self.assertLessEqual(highest, set(lines("divide_mix_cifar10_sym90_authors")))
        elr = {"--target_momentum=0.9", "--early_learning_weight=7.0", "--steps=52800"}
        self.assertLessEqual(elr, set(lines("elr_cifar100_asym40_authors")))
        elr = {"--target_momentum=0.9", "--early_learning_weight=1.0", "--steps=42240"}
        self.assertLessEqual(elr, set(lines("elr_cifar10_asym40_authors")))

    @pytest.mark.slow
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
            others = ("arazo", "beta_mixture", "aum", "cross_split", "pls_lsa")
            if "cifar100_" in name and not name.startswith(others):
                self.assertIn("--weight_decay=0.001\n", path.read_text())
            if name.startswith("fixmatch_cifar100"):
                self.assertRegex(path.read_text(), "--network=wrn_28_8(_torchssl)?\n")


class ReferenceTest(absltest.TestCase):
    def test_recipes_that_other_files_name_exist(self):
        names, root = [name for name, _ in RECIPES], recipes.folder().parent
        count = 0
        for pattern in (".ci/*", "benchmarks/*", "results/*", "ssl_noisy/**/*.py", "flags/*"):
            for path in filter(pathlib.Path.is_file, root.glob(pattern)):  # not `__pycache__`
                for name in re.findall(r"flags/([\w${}]+)\.cfg", path.read_text()):
                    name = re.sub(r"\$\{method\}|^METHOD", "*", name)
                    self.assertNotEmpty(fnmatch.filter(names, name), f"{path}: {name}")
                    count += 1
        self.assertGreaterEqual(count, len(names))

    def test_recipes_that_headers_name_exist(self):
        names = {name for name, _ in RECIPES}
        pattern = rf"\b(?:{'|'.join(methods.names())})_(?:cifar\d+n?|digits)_\w+"
        for name, path in RECIPES:
            for other in re.findall(pattern, recipes.header(path)):
                self.assertIn(other, names, name)


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
        _, lines, _ = self.call("--recipes", "elr", "cifar10", "asym")  # and not CIFAR-100
        self.assertEqual(
            [line for line in lines[1:] if line[0] != " "], ["elr_cifar10_asym40_authors"]
        )
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
