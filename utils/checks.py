"""Checks that many inputs share, with one wording each."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from .errors import SAMError
from .text import shown

_MOST_CHOICES = 12  # that a message lists
FAR = 1e9
"""JSON as Python reads it holds NaN, infinity and integers that no float can; coordinates and scores end here."""


def one_of(value: Any, choices: Sequence[str], name: str) -> str:
    """The value, which is one of the choices.

    Raises:
        SAMError: it is another; the message calls it by `name`.
    """
    if isinstance(value, str) and value in choices:
        return value
    listed = ", ".join([*choices][:_MOST_CHOICES]) + (", ..." if len(choices) > _MOST_CHOICES else "")
    raise SAMError(f"{name} is {shown(value)}: choose one of {listed}.")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not a switch."""
    if not isinstance(value, Real) or isinstance(value, (bool, np.bool_)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def is_coordinate(value: Any) -> bool:
    """Whether a value is a number that a coordinate can be."""
    return is_number(value) and abs(value) < FAR
