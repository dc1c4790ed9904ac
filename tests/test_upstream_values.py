"""Values of upstream rows: what equals a value is taken, whatever its type; the rest is not."""

import numpy as np

from lore.upstream_values import as_list, content_key, finite_number, truth, whole_number


def test_a_whole_number_is_what_equals_one():
    for value in (3, 3.0, np.int64(3), np.float32(3), np.uint8(3)):
        assert whole_number(value) == 3 and type(whole_number(value)) is int
    for value in (True, np.True_, 3.5, "3", None, [3], float("nan"), float("inf"), np.array([3])):
        assert whole_number(value) is None


def test_truth_is_what_equals_true_or_false():
    for value in (True, 1, 1.0, np.True_, np.int8(1)):
        assert truth(value) is True
    for value in (False, 0, 0.0, np.False_):
        assert truth(value) is False
    for value in (2, -1, "true", "1", None, float("nan"), []):
        assert truth(value) is None


def test_a_finite_number_is_a_number_or_its_text():
    assert [finite_number(value) for value in ("1.5", 2, np.float32(0.5))] == [1.5, 2.0, 0.5]
    for value in ("x", "", "nan", "inf", None, True, float("nan"), [1.0]):
        assert finite_number(value) is None


def test_a_list_is_no_text():
    assert as_list(["a"]) == as_list(("a",)) == as_list(np.array(["a"], dtype=object)) == ["a"]
    for value in ("a", None, {"a": 1}, 5, np.array("a")):
        assert as_list(value) is None


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
