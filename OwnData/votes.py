"""Which of two replies is better, in the words of many tools."""

import re

from lore.common import InputError, require
from lore.text.input_rows import NO_IDS
from lore.text.json_text import is_nothing
from lore.upstream_values import as_list, finite_number, truth, whole_number

# without case, spaces and signs; of ties the beginnings: "tie (bothbad)", "both are good", "Equally bad"
TIES = (
    "tie", "both", "neither", "equal", "nopreference", "draw", "same", "aboutthesame", "similar", "neutral", "a=b",
)  # fmt: skip
FIRST = {
    "a", "left", "first", "a>b", "a>>b", "b<a", "modela", "assistanta", "aisclearlybetter", "aisslightlybetter",
}  # fmt: skip
SECOND = {
    "b", "right", "second", "b>a", "b>>a", "a<b", "modelb", "assistantb", "bisclearlybetter", "bisslightlybetter",
}  # fmt: skip
SIGNS = re.compile(r"[^\w<>=]|_")  # that mean nothing: spaces, brackets, dashes


def vote_of(file_and_line, value, names, row, args):
    """a, b, tie, or None where there is none. InputError: a label that may be anything."""
    while as_list(value) and len(value) == 1:  # as Label Studio's short export has it
        (value,) = value
    value = value.get("selected") if isinstance(value, dict) else value
    if is_nothing(value) or str(value).strip().casefold() in NO_IDS:  # what tables write for a missing one
        return None
    label = plain(value)
    for side in args.votes:
        vote, sign, name = side.partition("=")
        require(sign and vote in ("a", "b", "tie"), f"--votes {side}: write a=LABEL, b=LABEL or tie=LABEL")
        if label == plain(name):
            return vote
    models = [row.get("model_a"), row.get("model_b")]
    for vote, name, model, labels in zip("ab", names, models, (FIRST, SECOND)):
        by_model = value == model and models[0] != models[1]
        by_number = label.isdigit() and label == name[-1]  # 1 of response_1 and response_2
        if label in labels or label == plain(name) or by_model or by_number:
            return vote
    if label.startswith(TIES):
        return "tie"
    text = f"the winner is {value!r}: which reply is that? say it, as --votes a=LABEL b=LABEL tie=LABEL"
    raise InputError(f"{file_and_line}: {text}")


def plain(label):
    """A label without case, spaces and signs; whole numbers alike whatever their type."""
    number = whole_number(finite_number(label))
    return SIGNS.sub("", str(label)).casefold() if number is None else str(number)


def winner_of(row):
    """What a row says of the winner, in one column or in three of 0 and 1."""
    if "winner" in row:
        return row["winner"]
    for side in ("model_a", "model_b", "tie"):
        if truth(finite_number(row.get(f"winner_{side}"))):
            return side
    return row.get("preference")
