"""Questions as tools for annotation import them; OwnData/convert.py turns what they export into comparisons.

argilla      records for dataset.records.from_json(PATH)
labelstudio  tasks to import, with a Pairwise tag
"""

import json

from outputs import require_ours

from lore.common import require, written_whole
from lore.text.input_rows import common_start
from lore.text.layouts import as_text

TAGS = (
    '<View><Text name="prompt" value="$prompt"/><Pairwise name="better" toName="left,right"/>'
    '<Text name="left" value="$left"/><Text name="right" value="$right"/></View>'
)
TEXTS = {"prompt", "left", "right"}


def argilla(questions):
    """Records, and what their data set is to be created with. A dialogue before a reply needs a ChatField."""
    is_dialogue = any(len(asked) > 1 for asked, *_ in questions)
    records = []
    for number, (asked, left, right) in enumerate(questions):
        prompt = asked if is_dialogue else as_text(asked)
        records.append({"id": str(number), "fields": {"prompt": prompt, "left": left, "right": right}})
    field = "Chat" if is_dialogue else "Text"
    fields = f'rg.{field}Field("prompt"), rg.TextField("left"), rg.TextField("right")'
    label = 'rg.LabelQuestion("better", labels=["left", "right", "tie"])'
    return records, f"rg.Settings(fields=[{fields}], questions=[{label}])"


def labelstudio(questions):
    """Tasks, and the labelling configuration of their project."""
    tasks = []
    for asked, left, right in questions:
        data = {"prompt": as_text(asked), "left": left, "right": right}
        if len(asked) > 1:
            data["messages"] = asked  # a dialogue again on the way back
        tasks.append({"data": data})
    return tasks, TAGS


FORMATS = {"argilla": argilla, "labelstudio": labelstudio}


def require_format(path, name):
    """Before questions are written for a tool. InputError: no such tool, a file of something else."""
    require(name in FORMATS, f"--format {name}: one of {', '.join(FORMATS)}")

    def is_ours(file):
        first = json.loads(file.read_text(encoding="utf-8"))[0]
        return (first.get("fields") or first["data"]).keys() >= TEXTS

    require_ours(path, is_ours)


def question_of(file_and_line, pair):
    """(messages asked, left, right) of two conversations. InputError: they end in more than a text each."""
    asked = common_start(*pair)
    replies = []
    for talk in pair:
        reply = talk[len(asked) :]
        is_text = len(reply) == 1 and reply[0].keys() == {"role", "content"}
        more = (
            "a reply that is more than a text, which no --format shows; ask with the page or with JSON lines"
        )
        require(is_text, f"{file_and_line}: {more}")
        replies.append(reply[0]["content"])
    return asked, *replies


def write_questions(path, name, questions):
    """Writes (messages, left, right) for a tool; -> what the tool must be told first."""
    items, told = FORMATS[name](questions)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(items, ensure_ascii=False, indent=1), encoding="utf-8")
    return told
