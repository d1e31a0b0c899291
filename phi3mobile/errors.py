"""The one error that is the user's to fix."""


class InputError(Exception):
    """The user's input is wrong. One line: what was given, what is allowed, what to do. The CLI exits with 2."""
