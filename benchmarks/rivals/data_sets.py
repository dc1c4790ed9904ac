"""The data sets of the study: planted people, and real ones where there is text and an encoder."""

from functools import partial
from typing import NamedTuple

import accuracy
from measure import load_module
from published import HALF, PERSONALLLM, PRISM, TABLES, TLDR

from lore.common import require
from lore.settings import defaults_of


class DataSet(NamedTuple):
    planted: bool
    make: object  # seed -> (Groups, head): another population, or the same people split anew
    model: str = ""  # what made the embeddings, where a prepare.py has said so


def personal_llm(seed, a):
    people = load_module("PersonalLLM/people.py")
    sides = people.plant(defaults_of(people, seed=seed))
    return people.split(sides, a, 150, 150, 45, 9, seed), sides.head


def prism(seed):
    people = load_module("PRISM/people.py")
    dialogues = people.plant(defaults_of(people, seed=seed))
    return people.split(dialogues), dialogues.comparisons.head


PLANTED = {
    "low rank": lambda seed: accuracy.planted(100, 50, 10, seed),
    "no differences": lambda seed: accuracy.planted(100, 50, 10, seed, personal=0.0),
    "wide, d = 512": lambda seed: accuracy.planted(100, 50, 10, seed, d=512),
    "few pairs": lambda seed: accuracy.planted(200, 5, 5, seed),
    "signed tastes": lambda seed: accuracy.planted(100, 50, 10, seed, signed=True),
    "PRISM's structure": prism,
    "PersonalLLM, a = 0.001": lambda seed: personal_llm(seed, 0.001),
    "PersonalLLM, a = 0.01": lambda seed: personal_llm(seed, 0.01),
    "PersonalLLM, a = 0.1": lambda seed: personal_llm(seed, 0.1),
}


def prepared_sets(folder):
    """{name: DataSet}: the paper's people, as many and with as many pairs, of what the data sets' scripts have
    left in FOLDER/RedditTLDR/data and its like. InputError: nothing is there."""
    made = {}
    for table, script_folder in ((TLDR, "RedditTLDR"), (PRISM, "PRISM"), (PERSONALLLM, "PersonalLLM")):
        data = folder / script_folder / "data"
        if data.exists():
            people = load_module(f"{script_folder}/people.py")
            prepared = people.load(data)
            embedded = prepared  # what has head and model
            if table != PERSONALLLM:
                embedded = prepared.train if table == TLDR else prepared.comparisons
            for column in TABLES[table]:
                make = partial(as_in_paper, people.split, prepared, embedded.head, column)
                made[f"prepared: {table}, {column}"] = DataSet(False, make, embedded.model)
    require(made, f"--prepared: {folder} has no RedditTLDR/data, PRISM/data or PersonalLLM/data")
    return made


def as_in_paper(split, prepared, head, column, seed):
    """(Groups, head) of a column of the paper's tables: "150 pairs", "a = 0.1", HALF."""
    if column == HALF:
        return split(prepared, seed, 0.5), head
    if column.endswith("pairs"):
        return split(prepared, 50, int(column.split()[0]), 50, 0.0, seed), head
    return split(prepared, float(column.removeprefix("a = ")), 1000, 1000, 45, 9, seed), head


def data_sets(args):
    """{name: DataSet} of those that are there and whose name holds one of args.sets."""
    made = {f"planted: {name}": DataSet(True, make) for name, make in PLANTED.items()}
    if args.prepared:
        made = prepared_sets(args.prepared)
    elif args.shared:
        require((args.shared / "data").is_dir(), f"--shared: {args.shared} holds no folder data")
        encoder = args.encoder or accuracy.default_encoder()
        require(encoder, "--shared: a text encoder is needed; name it with --encoder")
        for name, real in accuracy.embedded(args.shared, encoder, args.decoder).items():
            if "busy" not in name:
                made[name] = DataSet(False, real.groups, real.split.model)
    else:
        print("real people left out: no --shared")
    wanted = {}
    for part in args.sets or [""]:
        named = {name: data_set for name, data_set in made.items() if part in name}
        require(named, f"--sets {part}: no data set has that in its name, of: {'; '.join(made)}")
        wanted |= named
    return wanted
