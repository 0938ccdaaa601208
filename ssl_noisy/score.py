# SPDX-License-Identifier: Apache-2.0
"""Scores entries to the CIFAR-N challenge: python -m ssl_noisy.score --entry_dir=DIR

DIR contains REGIME/seed_N/ with the results of each run: docs/challenge.md
has the files. Prints accuracy and F1 with ranks, and writes --output=FILE,
which ends in .json, .md or .html. Several entries are ranked against each other:

  python -m ssl_noisy.score --entry_dir=mine --entry_dir=yours --output=board.html

An entry with faults is refused. All faults are listed, and nothing in an entry
is executed.
"""

import dataclasses
import json
import os

from absl import flags

from ssl_noisy import challenge, command, entry, files
from ssl_noisy.errors import UserError, UserErrors
from ssl_noisy.reports import leaderboard
from ssl_noisy.settings import absolute_path
from ssl_noisy.truths import Truths

FORMATS = (".json", ".md", ".html")


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user wants.

    Attributes:
        entry_dirs: Paths of entries, with different names.
        outputs: Paths to write.
        stand_ins, cifarn_files, data_dir, cache_dir: Where the truth is, as in `Truths`.
        num_seeds: Number of runs that each regime must have.
        published: Whether published figures are ranked, too.
    """

    entry_dirs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    cifarn_files: tuple[str, ...] = ()
    data_dir: str | None = None
    cache_dir: str | None = None
    num_seeds: int = challenge.NUM_SEEDS
    published: bool = True


def define_flags(values):
    """Defines the flags of this command and returns their names."""
    define = {"flag_values": values}
    texts = {
        "entry_dir": "Folder of an entry; may be repeated.",
        "output": f"File to write, {', '.join(FORMATS)}; may be repeated.",
        "cifarn_file": "Published CIFAR-N file, .pt or .npy; may be repeated. One whose name has a "
        "100 is that of CIFAR-100N. Unset: TFDS's data.",
        "truth": "FILE.npz or REGIME:FILE.npz with given_labels, true_labels and test_labels: "
        "other data than CIFAR-N, for tests; may be repeated. Without a name: custom.",
    }
    for name, help in texts.items():
        flags.DEFINE_multi_string(name, [], help, **define)
    flags.DEFINE_string("data_dir", None, "Folder in which TFDS keeps its data sets.", **define)
    flags.DEFINE_string("cache_dir", None, "Folder of decoded data sets.", **define)
    flags.DEFINE_integer(
        "num_seeds",
        challenge.NUM_SEEDS,
        "Runs that each regime must have.",
        lower_bound=1,
        **define,
    )
    flags.DEFINE_boolean("published", True, "Rank the figures of published entries, too.", **define)
    return [*texts, "data_dir", "cache_dir", "num_seeds", "published"]


def read_flags(argv, values):
    """Returns the `Request` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    command.parse(argv, values)
    entries = tuple(map(absolute_path, values["entry_dir"].value))
    if not entries:
        raise UserError("Pass the folder of an entry: --entry_dir=DIR.")
    names = [os.path.basename(path) for path in entries]
    if len(set(names)) < len(names):
        raise UserError(f"Entries need different names. Received: {', '.join(names)}. Rename one.")
    outputs = tuple(map(absolute_path, values["output"].value))
    for path in outputs:
        if os.path.splitext(path)[1].lower() not in FORMATS:
            raise UserError(f"--output must end in {', '.join(FORMATS)}. Received: {path}")
    places = (values[name].value for name in ("data_dir", "cache_dir"))
    return Request(
        entries,
        outputs,
        tuple(values["truth"].value),
        tuple(map(absolute_path, values["cifarn_file"].value)),
        *(place and absolute_path(place) for place in places),
        values["num_seeds"].value,
        values["published"].value,
    )


def main(request):
    for path in request.entry_dirs:
        if not os.path.isdir(path):
            raise UserError(f"There is no folder {path!r}. Check --entry_dir.")
    truths = Truths(
        request.stand_ins,
        cifarn_files=request.cifarn_files,
        data_dir=request.data_dir,
        cache_dir=request.cache_dir,
    )
    measured, refused = {}, {}
    for path in request.entry_dirs:
        found, faults = entry.read(path, truths, request.num_seeds)
        if faults:
            refused[found.name] = faults
        else:
            measured[found.name] = leaderboard.measure(found, truths)
    if measured:
        ranks = leaderboard.rank(measured, truths.datasets, request.published)
        shown = leaderboard.tables(measured, ranks)
        content = {"entries": measured, "ranks": ranks, "refused": refused}
        texts = {
            ".json": lambda: json.dumps(content, indent=1) + "\n",
            ".md": lambda: leaderboard.markdown(shown, refused),
            ".html": lambda: leaderboard.page(shown, refused),
        }
        for path in request.outputs:
            with files.replacing(path, "w") as file:
                file.write(texts[os.path.splitext(path)[1].lower()]())
        print(leaderboard.markdown(shown, {}), end="")
        for path in request.outputs:
            print(f"\n{path}: written")
    if refused:
        raise UserErrors(fault for faults in refused.values() for fault in faults)


if __name__ == "__main__":
    command.start("ssl_noisy.score", main, define_flags=define_flags, read_flags=read_flags)
