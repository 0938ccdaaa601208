# SPDX-License-Identifier: Apache-2.0
"""Three hundred user mistakes. Each is one line that names the cause, and nothing is written."""

import io
import json
import os
import subprocess
import sys
import zipfile
from unittest import mock

import numpy as np
from absl.testing import absltest
from commands import ROOT, MistakeCase
from PIL import Image

from ssl_noisy import machine

SMALL = ("--dataset=digits", "--num_labels=20", "--network=small_cnn", "--steps=20", "--noplots")

# Values that each flag refuses. The message must contain the name of the flag.
VALUES = {
    "method": "fixmtach FixMatch ../fixmatch __init__ ''",
    "baseline": "supervisd fixmatch,supervised",
    "remove_labels": "elr AUM ''",
    "network": "resnet wrn_28 wrn_28_2_2 wrn_27_2 wrn_4_2 wrn_28_0 wrn_28_-1 wrn_28_100000000 "
    "wrn_1000000000000_2 wrn_28_2.5 WRN_28_2 cnn_13 ''",
    "num_labels": "0 -1 1.5 many nan 9 1298 2147483648 99999999999999999999",
    "label_draw": "best Balanced ''",
    "label_seed": "-1 4294967296 1.5 x",
    "noise": "symetric:0.4 symmetric symmetric: symmetric:1 symmetric:-0.1 symmetric:nan pair:half "
    "instance:2 asymmetric:0.4 legacy_blocks:0.4 matrix: file: cifarn: cifarn:worse_label 0.4 :",
    "noise_draw": "fair exact",
    "noise_seed": "-1 4294967296 3",
    "cifarn_file": "labels.pt",
    "batch_norm_momentum": "-0.1 1 nan inf x",
    "steps": "0 -1 1.5 zero nan 1e3 2147483648 99999999999999999999999",
    "steps_per_epoch": "0 -1 2147483648 x",
    "steps_per_execution": "0 -2 3 21 2147483648 x",
    "learning_rate": "0 -0.1 nan inf fast",
    "schedule": "linear Cosine ''",
    "momentum": "-0.1 1 2 nan x",
    "nesterov": "maybe 2",
    "seed": "-1 4294967296 1.5 random",
    "precision": "float8 float16 ''",
    "jit_compile": "maybe true 1",
    "num_devices": "0 -1 1.5 3 all",
    "num_processes": "0 -1 1.5 2 all",
    "evaluation_batch_size": "0 -1 2147483648 x",
    "checkpoint_seconds": "-1 nan inf soon",
    "plots": "maybe",
    "dataset": "digts npz: npz:/no/such.npz npz:/ npz:/dev/zero folder: "
    "folder:/no/such folder:/dev/null ''",
    "train_split": "extra train[ train[:x] train[5:5] train[:1] train[:-1297] train+test",
    "validation_split": "train train[:10%] none",
    "test_split": "train extra",
    "label_file": "/no/such.json / /dev/zero",
    "flagfile": "/no/such.cfg / /dev/zero",
    # Arguments of FixMatch.
    "batch_size": "0 -3 1.5 x 1000000 100000000000",
    "unlabeled_ratio": "0 -7 x 100000000000",
    "confidence_threshold": "-0.01 1.01 nan high",
    "unsupervised_weight": "-1 nan inf x",
    "weight_decay": "-1e-9 nan inf x",
    "decayed": "biases",
    "ema_momentum": "-0.1 1 1.5 nan x",
    "weak_augmentation": "blur",
    "strong_augmentation": "augmix strong",
    "record_examples": "perhaps",
    "num_strong_views": "2",  # an argument of ReMixMatch alone
    "no_such_flag": "1",
}

# What messages contain instead of the name of the flag.
OTHER_NAMES = {
    "network": "wide ResNet",
    "noise": "CIFAR-N",
    "dataset": "data set",
    "train_split": "training",
    "validation_split": "validation",
}

# Arguments of other methods.
ARGUMENTS = """
supervised --unlabeled_ratio=3
supervised --confidence_threshold=0.9
remixmatch --num_strong_views=0
remixmatch --num_strong_views=-1
remixmatch --num_strong_views=100000000
remixmatch --anchor_weight=-1
remixmatch --rotation_weight=nan
remixmatch --ramp_end=1.1
remixmatch --mixup_alpha=-0.5
mixmatch --temperature=0
mixmatch --temperature=-1
mixmatch --temperature=inf
mixmatch --mixup_alpha=nan
mixmatch --ramp_end=-0.1
mean_teacher --ramp_end=2
mean_teacher --unsupervised_weight=inf
pseudo_label --ramp_start=1.1
pseudo_label --ramp_start=0.5
uda --tsa=cosine
uda --temperature=nan
uda --entropy_weight=-1
uda --confidence_threshold=2
flexmatch --confidence_threshold=-1
freematch --fairness_weight=-1
freematch --threshold_momentum=1
softmatch --num_sigmas=0
softmatch --threshold_momentum=-0.1
arazo --unlabeled_batch_size=0
arazo --unlabeled_batch_size=100000000000
arazo --warmup_epochs=-1
arazo --prior_weight=-1
arazo --num_snapshots=0
arazo --weak_augmentation=alternating_flip_shift
elr --target_momentum=1
elr --early_learning_weight=inf
elr --batch_size=100000000000
gce --loss_exponent=0
gce --loss_exponent=1.1
gce --loss_exponent=nan
mixup --mixup_alpha=-1
co_teaching --assumed_noise_rate=1
co_teaching --selection_end=1.1
co_teaching --batch_size=10000000
cores --confidence_weight=-1
cores --confidence_start=0.5
cores --confidence_end=0.05
cores --sieve_start=1.1
divide_mix --clean_threshold=1
divide_mix --temperature=0
divide_mix --ramp_start=0.5
divide_mix --ramp_end=0.01
divide_mix --loss_window=0
divide_mix --loss_window=100000000000
cross_split --unlabeled_batch_size=0
cross_split --relaxation=1.1
cross_split --temperature=0
cross_split --mixup_alpha=-1
cross_split --unsupervised_weight=-1
cross_split --contrastive_weight=nan
cross_split --contrastive_temperature=0
cross_split --warmup_penalty=-1
cross_split --ramp_start=0.5
cross_split --ramp_end=0.01
cross_split --strong_augmentation=ctaugment
pls_lsa --detector=aum
pls_lsa --clean_threshold=1
pls_lsa --feature_stage=0
pls_lsa --feature_stage=1024
pls_lsa --sum_networks
pls_lsa --temperature=0
pls_lsa --mixup_alpha=-1
pls_lsa --contrastive_temperature=0
pls_lsa --projection_size=0
pls_lsa --smallest_crop=0
pls_lsa --prior_weight=-1
pls_lsa --warmup_end=1.1
pls_lsa --strong_augmentation=ctaugment
promix --selection_fraction=0
promix --selection_threshold=1.1
promix --guess_fraction=-0.1
promix --guess_start=2
promix --debias=-1
promix --debias_momentum=1
promix --fmix_alpha=-1
promix --warmup_penalty=inf
promix --warmup_end=1.1
promix --weight_ramp_end=nan
promix --strong_augmentation=ctaugment
beta_mixture --variant=m_dyr
beta_mixture --bootstrap_start=1
beta_mixture --static_weight=1.1
beta_mixture --low_percentile=100
beta_mixture --low_percentile=96
beta_mixture --high_percentile=101
aum --pass_share=0
aum --pass_share=inf
aum --pass_batch_size=0
aum --threshold_percentile=100.1
aum --combine=xor
aum --threshold_samples=half
aum --remove_labels=aum
"""


class FlagTest(MistakeCase):
    def setUp(self):
        super().setUp()
        # Independent of the machine.
        self.enter_context(mock.patch.object(machine, "memory", lambda: 64 * 10**9))
        self.enter_context(mock.patch.object(machine, "accelerators", lambda: []))

    def test_values(self):
        for flag, values in VALUES.items():
            for value in values.split():
                value = value.strip("'")
                with self.subTest(flag=flag, value=value):
                    error = self.refuse(*SMALL, f"--{flag}={value}")
                    names = (flag, value, value.partition(":")[2], OTHER_NAMES.get(flag))
                    self.assertTrue(any(name and name in error for name in names), error)

    def test_arguments(self):
        for line in ARGUMENTS.split("\n")[1:-1]:
            method, argument = line.split()
            with self.subTest(line):
                error = self.refuse(*SMALL, f"--method={method}", argument)
                self.assertIn(argument.partition("=")[0].lstrip("-"), error)

    def test_flagfiles(self):
        for name, content in {
            "comment": b"--steps=5  # few\n",
            "binary": b"--steps=5\n\xff\xfe",
            "control": b"--data_dir=a\x01b",
            "text": b"hello",
            "unknown": b"--stpes=5",
            "itself": b"--flagfile={}",
            "absent": b"--flagfile=/no/such.cfg",
            "endless": b"--flagfile=/dev/zero",
        }.items():
            path = self.create_tempfile(f"{name}.cfg").full_path
            with open(path, "wb") as file:
                file.write(content.replace(b"{}", path.encode()))
            with self.subTest(name):
                self.refuse(f"--flagfile={path}")

    def test_words(self):
        self.assertIn("surprise", self.refuse("surprise"))
        self.assertIn("surprise", self.refuse(*SMALL, "--seed=1", "surprise"))
        self.assertIn("data_dir", self.refuse(*SMALL, "--data_dir=a\nb"))
        self.assertIn("data_dir", self.refuse(*SMALL, "--data_dir=\udcff"))
        self.assertIn("data_dir", self.refuse("--dataset=cifar10", "--data_dir=/dev/null"))
        self.assertIn("cache_dir", self.refuse("--dataset=cifar10", f"--cache_dir={'a/' * 3000}"))


def npz(**changes):
    """Returns the arrays of a valid npz file with changes. None leaves an array out."""
    labels = np.arange(40) % 10
    images = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8, 1)
    good = {"images_train": images, "labels_train": labels}
    good |= {"images_test": images[:10], "labels_test": labels[:10]}
    return {name: value for name, value in (good | changes).items() if value is not None}


BOTH = ("train", "test")
NPZ = {
    "no_images": {"images_train": None},
    "no_labels": {"labels_test": None},
    "float_images": {"images_train": np.zeros((40, 8, 8, 1))},
    "signed_images": {"images_train": np.zeros((40, 8, 8, 1), np.int8)},
    "flat_images": {"images_train": np.zeros((40, 64), np.uint8)},
    "five_axes": {"images_train": np.zeros((40, 8, 8, 1, 1), np.uint8)},
    "no_examples": {f"images_{p}": np.zeros((0, 8, 8, 1), np.uint8) for p in BOTH},
    "no_pixels": {f"images_{p}": np.zeros((40, 0, 8, 1), np.uint8) for p in BOTH},
    "no_channels": {f"images_{p}": np.zeros((40, 8, 8, 0), np.uint8) for p in BOTH},
    "two_channels": {f"images_{p}": np.zeros((40, 8, 8, 2), np.uint8) for p in BOTH}
    | {"labels_test": np.arange(40) % 10},
    "one_pixel": {f"images_{p}": np.zeros((40, 1, 1, 1), np.uint8) for p in BOTH}
    | {"labels_test": np.arange(40) % 10},
    "other_size": {"images_test": np.zeros((10, 9, 8, 1), np.uint8)},
    "other_channels": {"images_test": np.zeros((10, 8, 8, 3), np.uint8)},
    "float_labels": {"labels_train": np.zeros(40)},
    "text_labels": {"labels_train": np.array(["cat"] * 40)},
    "bool_labels": {"labels_train": np.zeros(40, bool)},
    "one_hot_labels": {"labels_train": np.eye(40, 10, dtype=int)},
    "column_labels": {"labels_train": np.zeros((40, 1), int)},
    "few_labels": {"labels_train": np.arange(39) % 10},
    "negative_labels": {"labels_train": np.arange(40) % 10 - 1},
    "large_labels": {"labels_train": np.full(40, 2**31 - 1)},
    "label_99999": {"labels_train": np.where(np.arange(40) == 5, 99_999, np.arange(40) % 10)},
    "gap": {"labels_train": np.arange(40) % 10 * 2},
    "one_class": {"labels_train": np.zeros(40, int), "labels_test": np.zeros(10, int)},
    "test_class": {"labels_test": np.arange(10) + 1},
    "object_labels": {"labels_train": np.array([None] * 40)},
    "double_ids": {"ids_train": np.zeros(40, int)},
    "few_ids": {"ids_train": np.arange(39)},
    "float_ids": {"ids_train": np.arange(40.0)},
    "large_ids": {"ids_train": np.arange(40, dtype=np.uint64) + 2**63},
}


def header(shape, descr="|u1"):
    """Returns an .npy file with six bytes of data and another size in its header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "descr": descr, "fortran_order": False}
    )
    return file.getvalue() + b"123456"


HEADERS = [((10**15, 8, 8, 1), "|u1"), ((2**62, 2**62), "|u1"), ((-3, -2), "|u1"), ((1,), "|O")]
RAW = {"empty": b"", "text": b"hello", "zip": b"PK\x03\x04" + bytes(40), "zeros": bytes(4000)}


class NpzTest(MistakeCase):
    def refuse_file(self, path):
        self.assertIn(path, self.refuse(*SMALL, f"--dataset=npz:{path}", "--label_draw=uniform"))

    def test_arrays(self):
        for name, changes in NPZ.items():
            path = self.create_tempfile(f"{name}.npz").full_path
            np.savez(path, **npz(**changes))
            with self.subTest(name):
                error = self.refuse(
                    *SMALL, f"--dataset=npz:{path}", "--num_labels=10", "--label_draw=uniform"
                )
                self.assertRegex(error, f"{path}|channels|2x2")

    def test_one_image(self):
        path = self.create_tempfile("one.npz").full_path
        one = {f"images_{part}": np.zeros((1, 8, 8), np.uint8) for part in BOTH}
        np.savez(path, **one, **{f"labels_{part}": np.zeros(1, int) for part in BOTH})
        self.refuse_file(path)

    def test_files(self):
        for name, raw in RAW.items():
            path = self.create_tempfile(f"{name}.npz").full_path
            with open(path, "wb") as file:
                file.write(raw)
            with self.subTest(name):
                self.refuse_file(path)
        pipe = os.path.join(self.create_tempdir().full_path, "pipe")
        os.mkfifo(pipe)
        self.refuse_file(pipe)

    def test_headers(self):
        for number, (shape, descr) in enumerate(HEADERS):
            path = self.create_tempfile(f"{number}.npz").full_path
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("images_train.npy", header(shape, descr))
            with self.subTest(shape=shape):
                self.refuse_file(path)


class FolderTest(MistakeCase):
    def setUp(self):
        super().setUp()
        self.root = self.create_tempdir().full_path
        for part in BOTH:
            for name in ("cat", "dog"):
                os.makedirs(f"{self.root}/{part}/{name}")
                Image.new("L", (8, 8)).save(f"{self.root}/{part}/{name}/1.png")

    def refuse_folder(self, name):
        with self.subTest(name):
            self.assertIn(self.root, self.refuse(*SMALL, f"--dataset=folder:{self.root}"))

    def test_files(self):
        bad = f"{self.root}/train/cat/2.png"
        with open(f"{self.root}/train/cat/1.png", "rb") as file:
            good = file.read()
        for name, raw in {**RAW, "half": good[:40], "head": good[:8] + bytes(90)}.items():
            with open(bad, "wb") as file:
                file.write(raw)
            self.refuse_folder(name)
        for name, image in {
            "float": Image.new("F", (8, 8)),
            "bomb": Image.new("1", (10_000, 10_000)),
        }.items():
            image.save(bad, "TIFF" if name == "float" else "PNG")
            self.refuse_folder(name)
        os.remove(bad)
        os.mkfifo(bad)
        self.refuse_folder("pipe")

    def test_classes(self):
        os.rename(f"{self.root}/test/dog", f"{self.root}/test/cow")
        self.refuse_folder("other")
        os.rename(f"{self.root}/test/cow", f"{self.root}/cow")
        os.rename(f"{self.root}/train/dog", f"{self.root}/dog")
        self.refuse_folder("one")
        os.mkdir(f"{self.root}/train/dog")
        self.refuse_folder("empty")


LABELS = {
    "dataset": [None, 5, "cifar10"],
    "version": [None, 5],
    "how": [None, 5, ["first"]],
    "seed": [None, -1, 1.5, "0", True],
    "sha256": [None, 5, "0" * 64],
    "num_labels": [None, 0, 3, "2"],
    "indices": [None, [], [0, 0], [4, 2], [-4, 0], [0.5, 4], ["0", "4"], [0, 2**63], [0, 2**70]]
    + [[0, None], {"0": 4}, 4],
}


class FileTest(MistakeCase):
    def refuse_each(self, flag, files):
        """Asserts that each file, from a dict of name to bytes, is refused with its path."""
        for name, raw in files.items():
            path = self.create_tempfile(name).full_path
            with open(path, "wb") as file:
                file.write(raw)
            with self.subTest(name):
                self.assertIn(path, self.refuse(*SMALL, flag + path))
        pipe = os.path.join(self.create_tempdir().full_path, "pipe")
        os.mkfifo(pipe)
        for path in (pipe, os.path.dirname(pipe), "/dev/zero", "/no/such/file"):
            with self.subTest(path):
                self.assertIn(path, self.refuse(*SMALL, flag + path))

    def test_label_files(self):
        good = {"dataset": "digits", "version": "1", "indices": [0, 4], "num_labels": 2}
        good |= {"how": "first", "seed": 0, "sha256": "0" * 64}
        files = {**RAW, "list": b"[]", "null": b"null", "deep": b"[" * 100_000, "nan": b"NaN"}
        for key, values in LABELS.items():
            for number, value in enumerate(values):
                content = {k: v for k, v in (good | {key: value}).items() if v is not None}
                files[f"{key}_{number}"] = json.dumps(content).encode()
        self.refuse_each("--label_file=", files)

    def test_noise_files(self):
        files = {**RAW, "no_zip": header((6,))}
        for number, (shape, descr) in enumerate(HEADERS):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("ids.npy", header(shape, descr))
            files[f"header_{number}"] = file.getvalue()
        for name in ("sha256", "ids"):
            file = io.BytesIO()
            np.savez(file, **{name: np.arange(3)})
            files[name] = file.getvalue()
        self.refuse_each("--noise=file:", files)

    def test_matrices(self):
        files = {**RAW, **{f"header_{i}": header(*h) for i, h in enumerate(HEADERS)}}
        for name, matrix in {
            "vector": np.ones(10),
            "oblong": np.ones((10, 9)),
            "classes": np.eye(9),
            "sums": np.ones((10, 10)),
            "negative": 2 * np.eye(10) - np.roll(np.eye(10), 1, axis=1),
            "nan": np.full((10, 10), np.nan),
            "text": np.full((10, 10), "1"),
            "complex": np.eye(10, dtype=complex),
        }.items():
            file = io.BytesIO()
            np.save(file, matrix)
            files[name] = file.getvalue()
        self.refuse_each("--noise=matrix:", files)


class BackendTest(absltest.TestCase):
    def run_python(self, *arguments, **variables):
        """Runs Python without the package named by the variable BLOCK."""
        folder = self.create_tempdir()
        folder.create_file(
            "sitecustomize.py",
            "import os, sys\n"
            "class Blocker:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == os.environ.get('BLOCK'):\n"
            "            raise ModuleNotFoundError('blocked', name=name)\n"
            "sys.meta_path.insert(0, Blocker())\n",
        )
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder.full_path}", **variables}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True
        )

    def test_one_line_of_a_command(self):
        for backend, block, message in (
            ("foo", "", "backends tensorflow and jax. Received: 'foo'. Set KERAS_BACKEND"),
            ("torch", "", "Received: 'torch'"),
            (
                "jax",
                "jax",
                "backend 'jax' is not installed. Install it, or set KERAS_BACKEND to te",
            ),
        ):
            for module in ("ssl_noisy", "ssl_noisy.train"):
                found = self.run_python("-m", module, KERAS_BACKEND=backend, BLOCK=block)
                self.assertEqual((found.returncode, found.stdout), (2, ""))
                self.assertLen(found.stderr.splitlines(), 1, found.stderr)
                self.assertIn(message, found.stderr)

    def test_an_import_error(self):
        found = self.run_python("-c", "import ssl_noisy", KERAS_BACKEND="foo")
        self.assertEqual(found.returncode, 1)
        self.assertStartsWith(found.stderr.splitlines()[-1], "ImportError: ssl_noisy runs on Keras")


if __name__ == "__main__":
    absltest.main()
