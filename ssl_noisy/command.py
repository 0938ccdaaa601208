# SPDX-License-Identifier: Apache-2.0
"""What all commands share: flags, one-line errors, exit codes."""

import gc
import os
import signal
import sys

from absl import app, flags, logging

from ssl_noisy import files, run_flags
from ssl_noisy.errors import UserError
from ssl_noisy.runs import removal, signals
from ssl_noisy.runs.session import Interrupted
from ssl_noisy.streams import Output


def start(program, main, default_arguments=(), define_flags=None, read_flags=None):
    """Runs a command with the arguments of the process, and exits.

    Args:
        program: Its name, the first word of an error.
        main: Function of what `read_flags` returns.
        default_arguments: Arguments to put before those of the user.
        define_flags: Function of absl's flag values. It defines flags and returns their names.
            Default: those of a run.
        read_flags: Function of the words of the command line and absl's flag values. Default:
            `parse_settings`, which returns a `Settings`.
    """
    use_standard_streams()
    signals.raise_all()
    for name in (define_flags or run_flags.define_flags)(flags.FLAGS):  # --help shows key flags
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    wanted = []

    def parse(argv):
        try:
            wanted.append((read_flags or parse_settings)(argv, flags.FLAGS))
        except (flags.Error, UserError) as error:
            sys.exit(fail(program, error))
        except SystemExit:  # of --help and others like it, for which absl exits with 1
            sys.exit(0)
        return argv[:1]

    def run(_):
        if not flags.FLAGS["verbosity"].present:  # TFDS logs every step
            logging.set_verbosity(logging.WARNING)
        code = execute(program, main, wanted[0])
        if code:
            signals.ignore()  # a second signal would only disturb the exit
            # An exception leaves reference cycles that hold the iterator of `fit`. TensorFlow must
            # delete it before Python exits, or it logs "FAILED_PRECONDITION: Python interpreter
            # state is not initialized".
            gc.collect()
        return code

    app.run(
        run,
        argv=[sys.argv[0], *default_arguments, *sys.argv[1:]],
        flags_parser=parse,
    )


def check_flagfiles(arguments, within=()):
    """Raises the `UserError` of a flagfile that absl would read for ever or could not decode.

    Args:
        arguments: The words of a command line, or the lines of a flagfile.
        within: Paths of the flagfiles that they are in.
    """
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        name, equals, path = argument.lstrip("-").partition("=")
        path = os.path.expanduser((path if equals else following).strip())
        is_directive = argument.startswith("-") and name.strip() == "flagfile"
        if not is_directive or not os.path.exists(path):  # which absl says well
            continue
        if path in within:
            raise UserError(f"The flagfile {path!r} includes itself.")
        try:
            files.require_regular(path)
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"The flagfile {path!r} cannot be read: {error}.") from error
        check_flagfiles(lines, (*within, path))


def parse(argv, flag_values):
    """Parses the words of a command line into absl's flag values.

    Raises:
        absl.flags.Error, UserError: If a flag is wrong, a flagfile cannot be read, or a word is no
            flag.
    """
    check_flagfiles(argv[1:])
    rest = flag_values(argv)[1:]
    if rest:
        raise UserError(f"Unexpected arguments: {' '.join(rest)}. Flags start with --.")


def parse_settings(argv, flag_values):
    """Returns the `Settings` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong. The message may have several lines.
    """
    parse(argv, flag_values)
    wanted = run_flags.from_flags(flag_values)
    removal.check(wanted)  # what else the run trains
    return wanted


def use_standard_streams():
    """Makes sure that printing never fails: see `Output`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # class names may contain any character
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Output(stream))


def execute(program, main, wanted):
    """Calls `main(wanted)`, and returns the exit code.

    A mistake of the user is one line on standard error and exit code 2. An interruption prints how
    to resume and returns 128 plus the number of the signal, as shells do: 130 for Ctrl-C.
    """
    try:
        main(wanted)
    except UserError as error:
        return fail(program, error)
    except Interrupted as stop:
        signals.ignore()
        print(f"\n{stop} Run the same command to resume.", file=sys.stderr)
        return signals.exit_code(stop.signum)
    except KeyboardInterrupt as stop:
        signals.ignore()
        print(f"\n{program}: stopped. Run the same command to resume or restart.", file=sys.stderr)
        return signals.exit_code(getattr(stop, "signum", signal.SIGINT))
    return 0


def fail(program, error):
    """Prints the error in one line, or each of `UserErrors`, and returns exit code 2."""
    for line in getattr(error, "lines", [str(error)]):
        print(f"{program}: {' '.join(line.split())}", file=sys.stderr)
    return 2
