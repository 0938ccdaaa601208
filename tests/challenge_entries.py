# SPDX-License-Identifier: Apache-2.0
"""Entries to the challenge: a good one, and many broken and hostile ones."""

import io
import itertools
import json
import os
import pickle
import shutil

import numpy as np

from ssl_noisy import challenge

TRAIN, TEST = 60, 20
TRUE = np.arange(TRAIN) % 4
TEST_LABELS = np.arange(TEST) % 4
GIVEN = {
    "a": np.where(np.arange(TRAIN) < 20, (TRUE + 1) % 4, TRUE),  # a third is wrong
    "b": np.where(np.arange(TRAIN) % 5 == 0, (TRUE + 2) % 4, TRUE),  # a fifth
}
PREDICTIONS = np.where(np.arange(TEST) < 4, (TEST_LABELS + 1) % 4, TEST_LABELS)
FLAGS = {"method": "elr", "learning_rate": 0.1, "steps": 300, "averaged": True, "freeze": None}
TOUCHED = "touched"  # the file that an attack creates in the current folder


def detection_of(regime):
    """Flags the wrong labels but the first, and one correct label: of a, 19 of 20 are right."""
    wrong = GIVEN[regime] != TRUE
    flagged = wrong.copy()
    flagged[[np.argmax(wrong), TRAIN - 1]] = ~flagged[[np.argmax(wrong), TRAIN - 1]]
    return flagged


def write_run(root, regime, seed, **changes):
    """Writes a good run with changes."""
    content = {
        "flags": {**FLAGS, "seed": seed, "noise": f"file:{regime}.npz"},
        "seconds": 90.5,
        "baseline_seconds": 10,
        "detection": detection_of(regime),
        "predictions": PREDICTIONS,
        "test_logits": np.eye(4, dtype="float32")[PREDICTIONS],
    }
    challenge.write_run(challenge.run_folder(root, regime, seed), **content | changes)


def write_entry(root):
    """Writes an entry without faults: two regimes, two seeds."""
    root.mkdir()
    for name in challenge.TEXTS:
        (root / name).write_text(f"touch {TOUCHED}\n")
    for regime, seed in itertools.product(GIVEN, (1, 2)):
        write_run(root, regime, seed)


def write_truths(root):
    """Writes the stand-ins and returns the flags that name them."""
    for name, given in GIVEN.items():
        np.savez(
            root / f"{name}.npz", given_labels=given, true_labels=TRUE, test_labels=TEST_LABELS
        )
    return [f"--truth={name}:{root}/{name}.npz" for name in GIVEN]


class Attack:
    def __reduce__(self):
        return open, (TOUCHED, "w")


def header(shape, descr="|b1"):
    """Returns an .npy file whose header announces another size than it has."""
    file = io.BytesIO()
    content = {"shape": shape, "descr": descr, "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, content)
    return file.getvalue() + b"\1" * 60


def write(name, raw):
    """Returns a function that writes a file of the first run."""
    raw = raw.encode() if isinstance(raw, str) else raw
    return lambda root: (root / "a/seed_1" / name).write_bytes(raw)


def save(**changes):
    """Returns a function that writes the first run with changes."""
    return lambda root: write_run(root, "a", 1, **changes)


def replace(name, make):
    """Returns a function that removes a file or a folder and calls `make` with its path."""

    def change(root):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return change


def config(flags, sha256=None):
    content = {"flags": flags, "sha256": sha256 or challenge.config_hash(flags)}
    return write("config.json", json.dumps(content))


def timing(*values):
    return write("timing.json", json.dumps(dict(zip(challenge.TIMING_KEYS, values))))


def do(*changes):
    return lambda root: [change(root) for change in changes]


def move(old, new):
    return lambda root: (root / old).rename(root / new)


def remove(name):
    return lambda root: (root / name).unlink()


def make_big(path):
    path.touch()
    os.truncate(path, 2**40)  # sparse


def pickled_array(root):
    with open(root / "a/seed_1/detection.npy", "wb") as file:
        np.save(file, np.array([Attack()] * TRAIN, object), allow_pickle=True)


def npz_under_the_name(root):
    with open(root / "a/seed_1/detection.npy", "wb") as file:
        np.savez(file, detection=detection_of("a"))


def many_files(root):
    for number in range(1001):
        (root / f"a/seed_1/{number}").touch()


D, P, L = (f"a/seed_1/{name}.npy" for name in ("detection", "predictions", "test_logits"))
C, T = (f"a/seed_1/{name}.json" for name in ("config", "timing"))
GOOD_FLAGS = {**FLAGS, "seed": 1}
LOGITS = np.eye(4)[PREDICTIONS]

# By name: what is done to a good entry, and the beginning of each line that this must give.
BAD = {
    "short": (
        save(detection=np.ones(59, bool)),
        f"{D} must be bool of shape (60,). Received: bool (59,)",
    ),
    "integers": (
        save(detection=detection_of("a") * 1),
        f"{D} must be bool of shape (60,). Received: int64",
    ),
    "probabilities": (
        save(detection=detection_of("a") * 0.9),
        f"{D} must be bool of shape (60,). Received: float64",
    ),
    "column": (
        save(detection=detection_of("a")[:, None]),
        f"{D} must be bool of shape (60,). Received: bool (60, 1)",
    ),
    "other_bytes": (
        write("detection.npy", header((60,))[:-60] + b"\2\0\1" * 20),
        f"{D} must be bool. Received: bytes",
    ),
    "record": (
        save(detection=np.zeros(60, "u1,u1")),
        f"{D} must be bool of shape (60,). Received: [('f0', 'u1')",
    ),
    "flags_all": (save(detection=np.ones(60, bool)), f"{D} flags all of 60 labels"),
    "flags_none": (save(detection=np.zeros(60, bool)), f"{D} flags none of 60 labels"),
    "leak": (
        save(detection=GIVEN["a"] != GIVEN["b"]),
        f"{D} flags the labels that differ between a, b.",
    ),
    "inverted": (
        save(detection=~detection_of("a")),
        f"{D} seems inverted: 2.5% of the flagged labels are wrong",
    ),
    "object_array": (pickled_array, f"{D} cannot be read: Object arrays are pickles"),
    "pickle": (
        write("detection.npy", pickle.dumps(Attack())),
        f"{D} cannot be read: the magic string",
    ),
    "npz": (
        do(write("detection.npz", b""), remove(D)),
        "a/seed_1/detection.npz must be detection.npy",
    ),
    "npz_inside": (npz_under_the_name, f"{D} cannot be read: the magic string"),
    "pkl": (
        write("predictions.pkl", pickle.dumps(Attack())),
        "a/seed_1/predictions.pkl must be predictions.npy",
    ),
    "terabytes": (
        write("detection.npy", header((2**45,))),
        f"{D} cannot be read: it announces bool (35184372088832,)",
    ),
    "overflow": (
        write("detection.npy", header((2**62, 2**62))),
        f"{D} cannot be read: it announces",
    ),
    "negative_shape": (write("detection.npy", header((-30, -2))), f"{D} cannot be read: "),
    "code_in_header": (
        write("detection.npy", header((60,)).replace(b"'shape': (60,)", b"'shape': open(1)")),
        f"{D} cannot be read: ",
    ),
    "large": (replace(D, make_big), f"{D} cannot be read: it has more than 4,576 bytes"),
    "empty": (write("detection.npy", b""), f"{D} cannot be read: "),
    "cut": (write("detection.npy", header((60,))[:-1]), f"{D} cannot be read: it announces"),
    "link": (
        replace(D, lambda path: path.symlink_to("../../b/seed_1/detection.npy")),
        f"{D} cannot be read: it is a link",
    ),
    "device_link": (
        replace(C, lambda path: path.symlink_to("/dev/zero")),
        f"{C} cannot be read: it is a link",
    ),
    "pipe": (replace(P, os.mkfifo), f"{P} cannot be read: it is a pipe"),
    "folder": (replace(T, os.mkdir), f"{T} cannot be read: it is a folder"),
    "regime_link": (
        do(move("b", "elsewhere"), lambda root: (root / "b").symlink_to("elsewhere")),
        "b must be a folder, not a file or a link",
        "elsewhere is no regime. Name it a, b",
    ),
    "run_is_a_file": (
        replace("b/seed_2", lambda path: path.touch()),
        "b/seed_2 must be a folder, not a file or a link.",
    ),
    "float_predictions": (
        save(predictions=PREDICTIONS * 1.0, test_logits=None),
        f"{P} must be integers of shape (20,)",
    ),
    "one_hot": (
        save(predictions=LOGITS.astype(int)),
        f"{P} must be integers of shape (20,). Received: int64 (20, 4)",
    ),
    "class_4": (save(predictions=PREDICTIONS + 1), f"{P} must be in [0, 4). Received: 1 to 4"),
    "class_below_0": (
        save(predictions=PREDICTIONS - 1),
        f"{P} must be in [0, 4). Received: -1 to 2",
    ),
    "nan": (
        save(test_logits=np.full((20, 4), np.nan)),
        f"{L} must be finite. Received: 80 NaN or infinite",
    ),
    "infinite": (save(test_logits=np.where(LOGITS == 1, np.inf, LOGITS)), f"{L} must be finite"),
    "disagree": (
        save(test_logits=np.roll(LOGITS, 1, axis=1)),
        f"{L} must be largest at the predicted class. Received: 20",
    ),
    "logits_of_9": (
        save(test_logits=np.zeros((20, 9))),
        f"{L} must be floats of shape (20, 4). Received: float64 (20, 9)",
    ),
    "hash": (
        config(GOOD_FLAGS | {"steps": 301}, challenge.config_hash(GOOD_FLAGS)),
        f"{C} was edited",
    ),
    "deep": (write("config.json", "[" * 100_000), f"{C} cannot be used: it is nested too deeply"),
    "no_utf8": (write("config.json", b'{"flags": "\xff"}'), f"{C} cannot be read: it is not UTF-8"),
    "nan_json": (
        write("config.json", '{"flags": {"a": NaN}, "sha256": ""}'),
        f"{C} cannot be used: NaN is no JSON",
    ),
    "infinite_json": (
        write("config.json", '{"flags": {"a": 1e999}, "sha256": ""}'),
        f"{C} must have flags",
    ),
    "long_number": (
        write("config.json", '{"flags": {"a": %s}, "sha256": ""}' % ("9" * 5_000)),
        f"{C} cannot be used",
    ),
    "key_twice": (
        write("config.json", '{"flags": {}, "flags": {}, "sha256": ""}'),
        f"{C} cannot be used: it has a key twice",
    ),
    "other_key": (
        write("config.json", '{"flags": {}}'),
        f"{C} cannot be used: it must have flags, sha256",
    ),
    "list": (write("config.json", "[]"), f"{C} cannot be used: it must have flags, sha256"),
    "nested": (
        write("config.json", '{"flags": {"a": [1]}, "sha256": ""}'),
        f"{C} must have flags, a dict of",
    ),
    "no_config": (remove(C), f"{C} cannot be read: No such file or directory"),
    "large_config": (
        write("config.json", b" " * (2**20 + 1)),
        f"{C} cannot be read: it has more than 1,048,576 bytes",
    ),
    "seed": (config(FLAGS | {"seed": 7}), f"{C} must have seed 1. Received: 7"),
    "time": (timing(101, 10, 100), f"{T} has 101 seconds, over the limit of 100"),
    "limit": (
        timing(90, 10, 101),
        f"{T} must have a limit_seconds of at most 10 times the baseline_seconds, 100.",
    ),
    "negative_time": (
        timing(-1, 10, 100),
        f"{T} must have positive numbers seconds, baseline_seconds, limit",
    ),
    "time_as_text": (timing("\x1b[2J", 10, 100), f"{T} must have positive numbers"),
    "huge_time": (timing(10**400, 10, 100), f"{T} must have positive numbers"),
    "true_time": (timing(True, 10, 100), f"{T} must have positive numbers"),
    "one_seed": (
        lambda root: shutil.rmtree(root / "b/seed_2"),
        "b must have 2 runs (--num_seeds). Received: 1, seed_1",
    ),
    "other_seeds": (
        do(lambda root: shutil.rmtree(root / "b/seed_2"), lambda root: write_run(root, "b", 3)),
        "b must have the seeds of a: 1, 2",
    ),
    "seed_01": (
        move("b/seed_2", "b/seed_02"),
        "b/seed_02 must be named seed_N",
        "b must have 2 runs",
    ),
    "regime": (move("b", "worse"), "worse is no regime. Name it a, b"),
    "no_run": (
        do(*(lambda root, x=x: shutil.rmtree(root / x) for x in "ab")),
        ". has no run. Required: REGIME/seed_N",
    ),
    "control_characters": (
        write("x\x1b]0;owned\x07", b""),
        r"'a/seed_1/x\x1b]0;owned\x07' has a name with control",
    ),
    "line_in_a_name": (
        lambda root: (root / "b/seed_1\nFAKE: all good").mkdir(),
        r"'b/seed_1\nFAKE: all good' has a name",
    ),
    "name_of_bytes": (
        lambda root: open(bytes(root) + b"/\xff.txt", "w").close(),
        r"'\udcff.txt' has a name with control",
    ),
    "many_files": (many_files, "a/seed_1 has more than 1,000 files"),
    "no_script": (remove("run.sh"), "run.sh cannot be read: No such file"),
    "empty_report": (
        replace("REPORT.md", lambda path: path.touch()),
        "REPORT.md cannot be read: it is empty",
    ),
    "linked_report": (
        replace("REPORT.md", lambda path: path.symlink_to("/etc/passwd")),
        "REPORT.md cannot be read: it is a link",
    ),
    "missing_result": (remove(D), "a/seed_1 has no detection.npy, which other seeds have"),
}
