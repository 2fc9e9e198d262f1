"""Words in messages."""


def counted(number: int, noun: str) -> str:
    """A number with its noun in the right form: `1 point`, `2 points`, `0 boxes`."""
    ending = "es" if noun.endswith(("x", "s", "ch", "sh")) else "s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{ending}"
