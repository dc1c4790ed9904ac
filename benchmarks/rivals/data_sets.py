"""The data sets of the study: planted people, and real ones where there is text and an encoder."""

from typing import NamedTuple

import accuracy
from measure import load_module

from lore.common import require
from lore.settings import defaults_of


class DataSet(NamedTuple):
    planted: bool
    make: object  # seed -> (Groups, head): another population, or the same people split anew


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


def data_sets(args):
    """{name: DataSet} of those that are there and whose name holds one of args.sets."""
    made = {f"planted: {name}": DataSet(True, make) for name, make in PLANTED.items()}
    if args.shared:
        require((args.shared / "data").is_dir(), f"--shared: {args.shared} holds no folder data")
        encoder = args.encoder or accuracy.default_encoder()
        require(encoder, "--shared: a text encoder is needed; name it with --encoder")
        for name, real in accuracy.embedded(args.shared, encoder, args.decoder).items():
            if "busy" not in name:
                made[name] = DataSet(False, real.groups)
    else:
        print("real people left out: no --shared")
    for part in args.sets:
        named = [name for name in made if part in name]
        require(named, f"--sets {part}: no data set has that in its name, of: {'; '.join(made)}")
    wanted = {}
    for name, data_set in made.items():
        if not args.sets or any(part in name for part in args.sets):
            wanted[name] = data_set
    return wanted
