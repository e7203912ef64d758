"""Failures that reach a person: one line that names the file or option and the remedy."""


class SplitlockError(Exception):
    """Something we cannot do. `str()` is the one line to print.

    `exit_code` is the exit status of the command that fails with it: 125 for our own failure or
    wrong usage, 126 for a program that cannot be executed, 127 for one that is not there, as
    env(1) and timeout(1) have it.
    """

    def __init__(self, message: str, exit_code: int = 125) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ImageError(ValueError):
    """A file that is not the image it claims to be. `str()` says what is wrong with it."""
