"""Errors a user can act on, and the exit codes they end in."""

from __future__ import annotations

DONE, OTHER, USAGE, DATA = 0, 1, 2, 3


class UserError(Exception):
    """One line: what is wrong, where, what to do. The command line prints it and exits ``code``."""

    code = OTHER


class UsageError(UserError):
    """Wrong use or configuration."""

    code = USAGE


class DataError(UserError):
    """Bad input data: names the file and the line, record or offset."""

    code = DATA
