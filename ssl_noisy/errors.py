# SPDX-License-Identifier: Apache-2.0
"""The error that a command reports in one line. Every other exception is a bug."""


class UserError(ValueError):
    """A mistake that the user can fix: a wrong flag, damaged data, a full disk.

    The message says what was received, what is required and how to fix it. Commands print it in
    one line and exit with code 2. All other exceptions, including other `ValueError`s, keep their
    traceback.
    """


class UserErrors(UserError):
    """Several mistakes at once. Commands print a line for each.

    Attributes:
        lines: Tuple of strings.
    """

    def __init__(self, lines):
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


def one_line(error, length=160):
    """Returns the message of an exception as the end of a line, or its type without a message."""
    return " ".join(str(error).split())[:length].rstrip(".") or type(error).__name__
