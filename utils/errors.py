"""The one error type that user input can cause."""


class SAMError(ValueError):
    """Bad input: the text says what was wrong, with the value seen, and what to do about it."""
