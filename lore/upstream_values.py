"""Values of upstream rows, taken by what they equal: tools that rewrite a file change their types."""

import hashlib
import json
import math
from numbers import Real

import numpy as np


def whole_number(value):
    """The int that a number equals, 1.0 and NumPy's included; None: no number, a bool, not whole."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        return None
    if isinstance(value, int | np.integer):  # however large
        return int(value)
    return int(value) if math.isfinite(value) and value == int(value) else None


def truth(value):
    """The bool that a value equals: true, 1 and 1.0 are one; None where it equals neither."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return {0: False, 1: True}.get(whole_number(value))


def finite_number(value):
    """The float that a number or its text equals, as in a CSV file; None: neither, or not finite."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_list(value):
    """A list, tuple or array as a list; None for anything else, a text above all."""
    if isinstance(value, np.ndarray):
        value = value.tolist()  # a number where there is no dimension
    return list(value) if isinstance(value, list | tuple) else None


def content_key(row):
    """A key that two rows share where all their values are equal, whatever their types.

    1 and 1.0 are one value, a number and its float32, nothing and no such column.
    """
    text = json.dumps(plain(row), sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


def plain(value):
    """A value in the words of JSON, of which each has one form."""
    if isinstance(value, dict):
        filled = {str(name): plain(inner) for name, inner in value.items()}
        return {name: inner for name, inner in filled.items() if inner is not None}
    items = as_list(value)
    if items is not None:
        return [plain(inner) for inner in items]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Real):
        whole = whole_number(value)
        if whole is not None:
            return whole
        return float(np.float32(value)) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str) else repr(value)
