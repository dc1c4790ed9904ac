"""What Argilla and Label Studio export: a function each, from a record or a task to what it comes to."""

from conversions import arena, rankings, ratings

from lore.common import require
from lore.text.json_text import is_nothing, listed
from lore.text.layouts import sides_of, there
from lore.upstream_values import as_list, finite_number

INNER = {"argilla": "fields", "labelstudio": "data"}  # what holds the texts of a row
DRAFT = "a draft"


def argilla(row, args):
    exported = "responses" in row or ".responses" in " ".join(row)
    require(exported, f"no responses, so no record of Argilla 2; {there(row)}")
    answers = [*argilla_answers(row)]
    asked = the_question({question for question, *_ in answers}, args)
    outcomes = [] if answers else ["no answer yet"]
    for question, user, value, status in answers:
        if question != asked:
            outcomes.append(f"an answer to the question {question}")
        elif status != "submitted":
            outcomes.append(DRAFT if status == "draft" else f"an answer that is {status}")
        else:
            of_person = {**row, "user_id": None if user == "None" else user}
            outcomes += argilla_answer(of_person, value, args)
    return outcomes


def argilla_answer(row, value, args):
    """A ranking names fields, best first; a label one of two; a rating is of the one reply."""
    names = as_list(value)
    if not names:
        judged = ratings if finite_number(value) is not None and sides_of(row) is None else arena
        return judged({**row, "score": value, "winner": value}, args)
    ranks = {}
    for position, name in enumerate(names):
        if isinstance(name, dict):
            position = name.get("rank", position)
            name = name.get("value")
        ranks[str(name)] = position
    if len(ranks) == 2 and not ranks.keys() & row.keys():  # A and B, or other words for the two fields
        tied = len({*ranks.values()}) == 1
        return arena(row | {"winner": "tie" if tied else min(ranks, key=ranks.get)}, args)
    for name in ranks:
        require(name in row, f"the ranking names {name!r}, which is no field; {there(row)}")
    texts = [row[name] for name in ranks]
    return rankings(row | {"responses": texts, "ranks": [*ranks.values()]}, args)


def argilla_answers(row):
    """Yield (question, person, value, status), of a record of to_json, plain or with flatten=True."""
    # to_json says of a record alone whether its answers are submitted
    usual = {"pending": "of a record that is still pending (export with flatten=True, which says more)"}
    of_record = usual.get(str(row.get("status")), "submitted")
    responses = row.get("responses") or {}
    require(isinstance(responses, dict), "responses is no object; was it exported whole?")
    for question, said in responses.items():
        for answer in objects(said, question):
            yield question, answer.get("user_id"), answer.get("value"), answer.get("status") or of_record
    for name in row:
        if name.endswith(".responses"):
            columns = []
            for end in (".users", "", ".status"):
                cell = listed(row.get(f"{name}{end}"))
                is_list = is_nothing(cell) or as_list(cell) is not None
                require(is_list, f"{name}{end} is no list; was it exported as JSON?")
                columns.append([] if is_nothing(cell) else cell)
            for user, value, status in zip(*columns):
                yield name.removesuffix(".responses"), user, value, status


def labelstudio(row, args):
    short = "the short export is read by --from arena --columns user_id=annotator winner=NAME_OF_THE_TAG"
    require(row.keys() & {"annotations", "completions"}, f"no annotations; {short}; {there(row)}")
    outcomes = [DRAFT] * len(as_list(row.get("drafts")) or [])
    annotations = objects(row.get("annotations") or row.get("completions"), "annotations")
    if not annotations and not outcomes:
        outcomes.append("a task without an annotation")
    for annotation in annotations:
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            outcomes.append("a task that was skipped")
            continue
        person = annotation.get("completed_by")
        if isinstance(person, dict):
            person = person.get("id") or person.get("email")
        label = label_of(annotation, args)
        outcomes += arena({**row, "user_id": person, "winner": label}, args)
    return outcomes


def label_of(annotation, args):
    """What an annotation says of left and right; None: nothing."""
    labels = {}
    for result in objects(annotation.get("result"), "result"):
        value = result.get("value")
        if not isinstance(value, dict):
            continue
        label = value.get("selected") or (as_list(value.get("choices")) or [None])[0]
        if label is not None:
            labels[str(result.get("from_name"))] = label
    return labels.get(the_question(labels, args))


def objects(value, name):
    """The objects of a list, none where it says nothing. InputError: something else."""
    items = [] if is_nothing(value) else as_list(value)
    is_list = items is not None and all(isinstance(item, dict) for item in items)
    require(is_list, f"{name} is no list of objects; was it exported whole?")
    return items


def the_question(questions, args):
    """The one that is asked for, or the only one; None: none has an answer. InputError: several."""
    told = f"several questions; which one? --question NAME, of {', '.join(sorted(questions))}"
    require(args.question or len(questions) <= 1, told)
    return args.question or next(iter(questions), None)
