"""What files hold, as JSON has it."""

import math
import re
from decimal import Decimal
from uuid import UUID

from lore.common import InputError, require
from lore.upstream_values import as_list

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, no tokenizer takes it
DEEPEST = 100  # lists and objects within each other, in a field


def in_json(value, where, depth=0):
    """A value as JSON has it; NaN, which tables have for nothing, is null. InputError: it has no such."""
    require(depth <= DEEPEST, f"{where}: lists and objects more than {DEEPEST} deep")
    if isinstance(value, dict):
        return {str(name): in_json(inner, where, depth + 1) for name, inner in value.items()}
    items = as_list(value)
    if items is not None:
        return [in_json(item, where, depth + 1) for item in items]
    if hasattr(value, "item"):  # of NumPy
        value = value.item()
    if isinstance(value, str):
        require(not SURROGATE.search(value), f"{where}: half a character (a lone surrogate)")
    elif str(value) in ("NaT", "<NA>") or value != value:
        return None
    elif isinstance(value, float | Decimal):
        require(abs(value) < math.inf, f"{where}: infinity, which JSON has not")
        if isinstance(value, Decimal):
            return int(value) if value == int(value) else str(value)
    elif hasattr(value, "isoformat"):
        return value.isoformat()
    elif isinstance(value, UUID):
        return str(value)
    elif value is not None and not isinstance(value, bool | int):
        raise InputError(f"{where}: a {type(value).__name__}, which JSON has not")
    return value


def is_nothing(value):
    """Whether a field says nothing: null, NaN, an empty cell or list, spaces."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or value in ([], {})
