"""Values of upstream rows: what equals a value is taken, whatever its type; the rest is not."""

import numpy as np
import pytest

from lore.upstream_values import as_list, content_key, finite_number, truth, whole_number

NAN = float("nan")
EQUAL = [  # what a function makes of values that are equal
    (whole_number, 3, (3, 3.0, np.int64(3), np.float32(3), np.uint8(3))),
    (whole_number, None, (True, np.True_, 3.5, "3", None, [3], NAN, float("inf"), np.array([3]))),
    (truth, True, (True, 1, 1.0, np.True_, np.int8(1))),
    (truth, False, (False, 0, 0.0, np.False_)),
    (truth, None, (2, -1, "true", "1", None, NAN, [])),
    (finite_number, 1.5, ("1.5", 1.5, np.float32(1.5))),
    (finite_number, None, ("x", "", "nan", "inf", None, True, NAN, [1.0])),
    (as_list, ["a"], (["a"], ("a",), np.array(["a"], dtype=object))),
    (as_list, None, ("a", None, {"a": 1}, 5, np.array("a"))),
]


@pytest.mark.parametrize("function, expected, values", EQUAL)
def test_what_equals_a_value_is_taken_and_nothing_else(function, expected, values):
    for value in values:
        found = function(value)
        assert found == expected and type(found) is type(expected), value


def test_rows_of_equal_values_share_a_key_whatever_their_types():
    row = {"choice": 1, "texts": ["a", "b"], "score": 0.1, "info": {"id": "x"}}
    rewritten = {
        "score": np.float32(0.1), "choice": 1.0, "texts": np.array(["a", "b"], dtype=object),
        "info": {"id": "x", "post": None}, "extra": None,
    }  # fmt: skip
    assert content_key(row) == content_key(rewritten)
    for name, other in (("choice", 0), ("texts", ["b", "a"]), ("score", 0.2), ("choice", True)):
        assert content_key({**row, name: other}) != content_key(row)
    long = np.zeros(5000)
    altered = long.copy()
    altered[2500] = 1  # which the text of an array would leave out
    assert content_key({"a": long}) != content_key({"a": altered})
