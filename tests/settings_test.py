# SPDX-License-Identifier: Apache-2.0
import dataclasses
import os

from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import command, methods, run_flags
from ssl_noisy.runs import removal
from ssl_noisy.settings import Settings, fields

WRITTEN_SINCE_THE_BEGINNING = {
    *("method", "dataset", "label_draw", "label_seed", "seed", "plots"),
    *("network", "normalization", "precision", "jit_compile"),
    *("steps", "steps_per_epoch", "steps_per_execution", "evaluation_batch_size"),
    *("optimizer", "learning_rate", "schedule", "momentum", "nesterov", "checkpoint_seconds"),
}


def parse(*arguments):
    values = flags.FlagValues()
    run_flags.define_flags(values)
    return command.parse_settings(["program", *arguments], values)


class SettingsTest(parameterized.TestCase):
    def test_flags_arrive(self):
        made = parse(
            "--method=fixmatch", "--num_labels=40", "--confidence_threshold=0.9", "--seed=3"
        )
        self.assertEqual((made.num_labels, made.seed), (40, 3))
        self.assertEqual(made.method_arguments, {"confidence_threshold": 0.9})

    def test_the_command_line_beats_a_flagfile_before_it(self):
        path = self.create_tempfile(content="--seed=1\n--steps=7\n").full_path
        made = parse(f"--flagfile={path}", "--seed=2")
        self.assertEqual((made.seed, made.steps), (2, 7))

    def test_unset_is_the_methods_own_default(self):
        resolved = parse("--method=fixmatch").resolved()
        self.assertEqual((resolved.steps, resolved.steps_per_epoch), (2**20, 1024))
        self.assertEqual((resolved.learning_rate, resolved.schedule), (0.03, "cosine_7_16"))
        self.assertEqual(resolved.method_arguments["unlabeled_ratio"], 7)
        self.assertEqual(parse("--seed=4").resolved().label_seed, 4)

    def test_another_optimizer_has_its_own_defaults(self):
        names = ("optimizer", "learning_rate", "momentum", "nesterov")

        def resolved(*arguments):
            made = parse(*arguments).resolved()
            return [getattr(made, name) for name in names]

        self.assertEqual(resolved(), ["sgd", 0.03, 0.9, True])
        self.assertEqual(resolved("--optimizer=sgd", "--method=gce"), ["sgd", 0.01, 0.9, False])
        self.assertEqual(resolved("--optimizer=adam"), ["adam", 0.001, 0.9, None])
        self.assertEqual(resolved("--optimizer=muon"), ["muon", 0.001, 0.95, True])
        self.assertEqual(
            resolved("--optimizer=adamw", "--learning_rate=0.1", "--momentum=0.5"),
            ["adamw", 0.1, 0.5, None],
        )
        co_teaching = "--method=co_teaching"
        self.assertEqual(resolved(co_teaching), ["adam", 0.001, 0.9, None])
        self.assertEqual(resolved(co_teaching, "--optimizer=sgd"), ["sgd", 0.03, 0.9, True])
        # A baseline trains like the method.
        baseline = parse("--optimizer=adam", "--baseline=supervised").for_baseline().resolved()
        self.assertEqual([getattr(baseline, name) for name in names], ["adam", 0.001, 0.9, None])

    def test_nesterov_is_refused_where_it_has_no_effect(self):
        for arguments in (("--optimizer=adam", "--nesterov"), ("--method=co_teaching",)):
            with self.assertRaisesRegex(
                ValueError, "no effect with --optimizer=adam, only with sg"
            ):
                parse(*arguments, "--nonesterov")

    def test_a_short_run_is_one_epoch(self):
        self.assertEqual(parse("--steps=10").resolved().steps_per_epoch, 10)

    def test_the_written_flagfile_gives_the_same_settings(self):
        made = parse("--nonesterov", "--num_labels=40", "--dataset=cifar10", "--unlabeled_ratio=3")
        path = self.create_tempfile(content="\n".join(made.flag_lines())).full_path
        again = parse(f"--flagfile={path}")
        self.assertEqual(again.resolved(), made.resolved())
        self.assertEqual(again.flag_lines(), made.flag_lines())

    def test_where_the_images_are_does_not_identify_a_run(self):
        here, there = parse("--resident_limit=4"), parse("--resident=host")
        self.assertEqual(here.default_run_dir(), there.default_run_dir())
        self.assertEqual(here.residence(), {"resident": "auto", "resident_limit": 4.0})
        with self.assertRaisesRegex(ValueError, "--resident_limit has no effect with --resident=h"):
            parse("--resident=host", "--resident_limit=4")

    def test_a_new_setting_is_written_only_if_given(self):
        """Runs that began before a setting existed resume: their flags.cfg lacks its line."""
        names = {line.lstrip("-").partition("=")[0] for line in parse().flag_lines()}
        settings = {field.name for field in fields()}
        self.assertEqual(settings & names, WRITTEN_SINCE_THE_BEGINNING)
        for line in ("--freeze=block1", "--backbone_learning_rate_multiplier=0.5"):
            self.assertIn(line, parse(line).flag_lines())

    @parameterized.parameters(
        ("--method=fixmtach", "Unknown method 'fixmtach'. Did you mean 'fixmatch'?"),
        ("--num_labels=0", "--num_labels must be at least 1"),
        ("--steps=-5", "--steps must be"),
        ("--learning_rate=nan", "--learning_rate must be"),
        ("--learning_rate=0", "--learning_rate must be above 0"),
        ("--learning_rate=inf", "--learning_rate must be"),
        ("--momentum=1", r"--momentum must be in \[0, 1\)"),
        ("--precision=float8", "--precision must be one of float32"),
        ("--seed=4294967296", r"--seed must be .* below 2\*\*32"),
        ("--batch_norm_epsilon=0", "--batch_norm_epsilon must be above 0"),
        ("--normalization=zscore", "--normalization must be one of scale, dataset, imagenet, whi"),
        ("--optimizer=lion", "--optimizer must be one of sgd, adam, adamw, muon"),
        ("--schedule=linear", "--schedule must be one of cosine_7_16"),
        ("--label_draw=best", "--label_draw must be one of balanced"),
        ("--jit_compile=maybe", "--jit_compile must be one of auto, on, off"),
        ("--steps_per_execution=3", "must divide --steps=1048576"),
        ("--steps=99999999999999999999999", r"--steps must be .* below 2\*\*31"),
        ("--network=wrn_28_100000000", r"and 1e\+09 parameters. Received: .*about 3.9e\+21"),
        ("--network=wrn_1000000000000_2", "a depth of at most 1000"),
        ("--network=wrn_28_" + 4000 * "9", "Unknown network"),
        ("--batch_size=0", "`batch_size` argument of `FixMatch` must be at least 1"),
        ("--data_dir=a\nb", "--data_dir must be UTF-8 text without control characters"),
        ("--data_dir=\udcff", "--data_dir must be UTF-8 text without control characters"),
        ("--noise=symetric:0.4", "Did you mean 'symmetric'?"),
        ("--noise=pair:1.0", "'pair:1.0' must have a rate"),
        ("--resident=disk", "--resident must be one of auto, device, host"),
        ("--resident_limit=0", "--resident_limit must be above 0"),
        ("stray", "Unexpected arguments: stray"),
    )
    def test_mistakes_are_named(self, argument, message):
        with self.assertRaisesRegex(ValueError, message.replace("?", r"\?")):
            parse(argument)

    @parameterized.parameters(
        ("divide_mix", "ramp_start", "ramp_end"),
        ("pseudo_label", "ramp_start", "ramp_end"),
        ("cores", "confidence_start", "confidence_end"),
    )
    def test_a_ramp_ends_after_it_starts(self, method, start, end):
        parse(f"--method={method}", f"--{start}=0.3", f"--{end}=0.3")  # a jump
        with self.assertRaisesRegex(ValueError, f"`{start}` .* must be at most {end}=0.2. Rec"):
            parse(f"--method={method}", f"--{start}=0.3", f"--{end}=0.2")

    def test_all_that_a_run_trains_is_checked(self):
        with self.assertRaisesRegex(ValueError, "`combine` argument of `AUM`"):
            parse("--remove_labels=aum", "--combine=xor")
        with self.assertRaisesRegex(ValueError, "--steps must be .* below"):
            parse("--method=aum", "--pass_share=1e30")
        with self.assertRaisesRegex(ValueError, "leave one of 10 steps for bootstrapping"):
            parse("--method=beta_mixture", "--steps=10", "--bootstrap_start=0.95")

    def test_a_flag_that_the_method_does_not_take_lists_those_it_does(self):
        with self.assertRaisesRegex(
            ValueError,
            "--confidence_threshold is not a flag of method 'supervised', which takes: "
            "--average_statistics, --batch_size, --decayed, --ema_momentum, "
            "--ema_warmup, --record_examples, --weak_augmentation, --weight_decay",
        ):
            parse("--method=supervised", "--confidence_threshold=0.9")

    @parameterized.parameters(
        "--confidence_treshold=0.9", "--steps=many", "--flagfile=/no/such.cfg"
    )
    def test_absl_refuses(self, argument):
        with self.assertRaises(flags.Error):
            parse(argument)

    def test_a_baseline_takes_what_it_can(self):
        made = parse(
            "--baseline=supervised", "--batch_size=8", "--unlabeled_ratio=2", "--num_labels=9"
        )
        baseline = made.for_baseline()
        self.assertEqual(set(baseline.method_arguments), set(methods.arguments("supervised")))
        self.assertEqual(baseline.method_arguments["batch_size"], 8)
        self.assertEqual((baseline.method, baseline.baseline), ("supervised", None))
        self.assertEqual(baseline.num_labels, 9)

    def test_a_baseline_trains_as_long_and_as_fast_as_the_method(self):
        made = parse("--method=arazo", "--baseline=supervised", "--num_labels=9")
        baseline = made.for_baseline().resolved()
        self.assertEqual((baseline.steps, baseline.learning_rate), (235_650, 0.1))
        self.assertEqual((baseline.schedule, baseline.nesterov), ("drops_5_8_7_8", False))
        self.assertEqual(baseline.method_arguments["weight_decay"], 1e-4)

    def test_a_baseline_of_itself_or_of_none_is_none(self):
        self.assertIsNone(parse("--baseline=fixmatch").baseline)
        self.assertIsNone(parse("--baseline=supervised", "--baseline=").baseline)

    def test_each_noise_takes_its_own_settings(self):
        for noise, name in (
            (None, "noise_seed"),
            ("file:a.npz", "noise_seed"),
            ("instance:0.4", "noise_draw"),
            ("symmetric:0.4", "cifarn_file"),
            ("cifarn:worse_label", "noise_seed"),
        ):
            value = {"noise_seed": 1, "noise_draw": "coin", "cifarn_file": "a.pt"}[name]
            with self.assertRaisesRegex(ValueError, f"--{name} has no effect with --noise={noise}"):
                Settings(noise=noise, **{name: value})
        made = Settings(noise="symmetric:0.4", seed=3).resolved()
        self.assertEqual((made.noise_seed, made.noise_draw), (3, "exact"))
        made = Settings(noise="cifarn:worse_label", seed=3).resolved()
        self.assertEqual((made.noise_seed, made.noise_draw), (None, None))

    def test_any_method_takes_the_flags_of_the_method_that_removes_labels(self):
        own = {"confidence_threshold": 0.9, "pass_batch_size": 8}
        made = Settings(remove_labels="aum", method_arguments=own)
        self.assertEqual(made.remover, "aum")
        self.assertEqual(made.learner_arguments, {"confidence_threshold": 0.9})
        self.assertEqual(made.resolved().method_arguments["combine"], "and")
        self.assertEqual(removal.pass_settings(made).method_arguments["batch_size"], 8)
        self.assertNotIn("pass_batch_size", made.resolved().learner_arguments)
        with self.assertRaisesRegex(ValueError, "--pass_batch_size is not a flag"):
            Settings(method_arguments=own)
        with self.assertRaisesRegex(ValueError, "removes labels itself"):
            Settings(method="aum", remove_labels="aum")
        baseline = Settings(baseline="supervised", remove_labels="aum").for_baseline()
        self.assertIsNone(baseline.remover)

    def test_paths_are_absolute(self):
        made = parse("--dataset=npz:a.npz", "--run_dir=b", "--label_file=c.json")
        self.assertEqual(made.dataset, f"npz:{os.path.abspath('a.npz')}")
        self.assertEqual(made.run_dir, os.path.abspath("b"))
        self.assertEqual(made.label_file, os.path.abspath("c.json"))

    def test_other_settings_have_another_default_folder(self):
        first, second = parse("--num_labels=40"), parse("--num_labels=40", "--batch_size=7")
        self.assertNotEqual(first.default_run_dir(), second.default_run_dir())
        self.assertEqual(first.default_run_dir(), parse("--num_labels=40").default_run_dir())
        self.assertRegex(first.default_run_dir(), r"/runs/fixmatch_digits_40_seed0_[0-9a-f]{8}$")


class FlagsTest(absltest.TestCase):
    def test_every_field_is_a_flag_with_help_and_reaches_the_settings(self):
        values = flags.FlagValues()
        run_flags.define_flags(values)
        for field in dataclasses.fields(Settings):
            if field.name != "method_arguments":
                self.assertNotEmpty(values[field.name].help, field.name)

    def test_the_same_name_means_the_same_in_every_method(self):
        for name, takers in run_flags.method_flags().items():
            self.assertLen({argument.kind for argument in takers.values()}, 1, name)
            if name != "confidence_threshold":  # `>=` or `>`, of all classes or the best learned
                self.assertLen({argument.help for argument in takers.values()}, 1, name)

    def test_help_states_range_and_defaults(self):
        values = flags.FlagValues()
        run_flags.define_flags(values)
        text = values["tsa"].help
        self.assertIn(" Must be one of none, linear, log, exp. Default: none (uda).", text)
        text = values["fairness_weight"].help
        self.assertIn("Must be at least 0. Default: 0.001 (freematch).", text)
        self.assertIn("0.0001 (", values["weight_decay"].help)


if __name__ == "__main__":
    absltest.main()
