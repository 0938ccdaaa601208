# SPDX-License-Identifier: Apache-2.0
"""The error that a command reports as one line; every other exception is a bug."""


class UserError(ValueError):
    """A mistake that the user can fix: a wrong flag, damaged data, a full disk.

    The message says what was received, what is required and how to fix it. Commands print it as
    one line and exit with code 2. All other exceptions, `ValueError` included, keep their
    traceback.
    """
