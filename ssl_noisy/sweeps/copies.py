# SPDX-License-Identifier: Apache-2.0
"""Keeps the folder of a run on one machine equal to that on another, file by file.

Files travel in the order in which the run wrote them. A copy that breaks off is what a killed run
leaves.
"""

import contextlib
import os
import stat

from ssl_noisy import files
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder as run_folder


def tidy(run_dir):
    """Creates the folder of a run, or removes the temporary files of a killed process from it."""
    files.make_folder(run_dir)
    with run_folder.only_process(run_dir):
        for path in _paths(run_dir, are_temporary=True):
            with files.writing(path):
                os.remove(path)


def _paths(run_dir, are_temporary):
    found = [(where, name) for where, _, names in os.walk(run_dir) for name in names]
    return [os.path.join(*x) for x in found if files.is_left_over(x[1]) == are_temporary]


def look(run_dir):
    """Returns a dict from the relative path of each file to a tuple that changes with its content.

    The oldest file comes first. Temporary files and links are left out.

    Args:
        run_dir: Path of the folder of a run. It may be missing.
    """
    found = {}
    for path in _paths(run_dir, are_temporary=False):
        with contextlib.suppress(FileNotFoundError):  # the run has removed it
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                # A result comes after files of the same moment: it marks the end of a run.
                when = (status.st_mtime_ns, os.path.basename(path) == run_folder.RESULT)
                found[os.path.relpath(path, run_dir)] = (*when, status.st_ino, status.st_size)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def changes(run_dir, known):
    """Yields what makes a copy of the folder of a run equal to it, as of one moment.

    Args:
        run_dir: Path of the folder. The run may go on meanwhile.
        known: What `look` returned when the copy was equal. It is kept up to date.

    Yields:
        Tuples `(path, content)` for `write`: the relative path of a file, and its bytes, the path
        that it had in the copy, or None if it is gone.
    """
    with contextlib.ExitStack() as stack:
        now, opened = _freeze(run_dir, known, stack)
        for path, file in opened.items():
            # The last checkpoint becomes the previous one.
            before = next((old for old, kind in known.items() if kind == now[path]), None)
            yield path, before or file.read()
            known[path] = now[path]
    # `flags.cfg` marks a run folder, so it goes last.
    for path in sorted(known.keys() - now, key=lambda path: (path == run_folder.FLAGS, path)):
        yield path, None
        del known[path]


def _freeze(run_dir, known, stack):
    """Returns what `look` finds and a dict from path to open file, of those that have changed.

    If the run writes too fast, it returns `known` and no files.
    """
    for _ in range(5):
        now, opened = look(run_dir), {}
        with contextlib.suppress(FileNotFoundError):
            for path in now:
                if known.get(path) != now[path]:
                    file = open(os.path.join(run_dir, path), "rb")  # noqa: SIM115
                    opened[path] = stack.enter_context(file)
            if look(run_dir) == now:
                return now, opened
    return dict(known), {}


def write(run_dir, path, content):
    """Brings a file of a copy up to date, atomically.

    Args:
        run_dir: Path of the folder, which is created.
        path, content: What `changes` yields.

    Raises:
        UserError: If it cannot, another process trains in the folder, or a path leads out of it.
    """
    target = _inside(run_dir, path)
    files.make_folder(run_dir)
    with run_folder.only_process(run_dir), files.writing(target):
        if content is None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(target)
            where = os.path.dirname(path)
            with contextlib.suppress(OSError):  # the folder has other files
                while where:
                    os.rmdir(os.path.join(run_dir, where))
                    where = os.path.dirname(where)
        elif isinstance(content, str):
            os.replace(_inside(run_dir, content), target)
        else:
            with files.replacing(target) as file:
                file.write(content)


def _inside(run_dir, path):
    base = os.path.realpath(run_dir)
    target = os.path.realpath(os.path.join(base, path))
    if not target.startswith(f"{base}{os.sep}"):
        raise UserError(f"A node sent a file outside of the folder {run_dir}: {path!r}.")
    return target
