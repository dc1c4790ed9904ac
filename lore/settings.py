"""Settings of a script: a ruled block of constants, each of them a flag as well."""

import argparse
import math
import re
from pathlib import Path

from lore.common import InputError, require, require_apart

SETTING = re.compile(r"^(\w+) = .*?(?:\s+# (.*))?$")
REAL = (
    "alpha_list", "dirichlet_list", "rate", "share", "fraction", "posts", "accuracy", "agreement",
    "concentration", "popularity", "unexplained",
)  # fmt: skip  # how names of settings end that are no counts
SEEDS = 2**32  # NumPy's legacy generator takes none from here on


class OneLineParser(argparse.ArgumentParser):
    """A parser whose --help begins with a script's docstring, and whose errors are InputErrors."""

    def __init__(self, docstring):
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(description=docstring, formatter_class=as_written, allow_abbrev=False)

    def error(self, message):
        raise InputError(f"{message} (--help lists the flags)")


def settings(script, *shared):
    """Flags of a script, from its own settings block: `script` is its globals().

    Every `name = value  # meaning` between the two ruled lines is the flag --name with that default
    and that help. shared: modules with a block of their own, which several scripts have in common;
    what the script states itself goes before it.
    """
    parser = OneLineParser(script["__doc__"])
    names = set()
    for module in (script, *map(vars, shared)):
        for name, meaning in stated(module["__file__"]):
            if name not in names:
                add_flag(parser, name, module[name], meaning)
            names.add(name)
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        check(name, value)
    file = Path(script["__file__"])
    arguments.script = f"{file.parent.name}/{file.name}"  # so that results say what wrote them
    return arguments


def stated(file):
    """(name, meaning) of each line of a file's settings block."""
    block = Path(file).read_text(encoding="utf-8").split("settings ---", 1)[1].split("# ---", 1)[0]
    for match in map(SETTING.match, block.splitlines()):
        if match:
            yield match.groups()


def add_flag(parser, name, default, meaning):
    if isinstance(default, range | tuple):
        default = list(default)
    if name in ("data", "results"):
        default = Path(default)
    kind = {"type": type_of(name, default)}
    if isinstance(default, bool):
        kind = {"action": argparse.BooleanOptionalAction}
    elif isinstance(default, list):
        # names add up, of other lists the one given last holds
        kind |= {"nargs": "+", "action": "store" if default else "extend"}
    text = f"{meaning or ''} [{default}]".replace("%", "%%")
    flag = name.rstrip("_")  # from_, since Python keeps the word for itself
    parser.add_argument(f"--{flag}", dest=name, default=default, help=text, **kind)


def type_of(name, default):
    """What a flag takes: fractions as well where the default is a whole number that may be edited to one."""
    values = default if isinstance(default, list) else [default]
    if name.endswith(REAL) or any(isinstance(value, float) for value in values):
        return float
    return type(values[0]) if values else str


def check(name, value):
    """InputError: a number below zero, NaN or infinite, or a seed that NumPy does not take."""
    for number in value if isinstance(value, list) else [value]:
        usable = not isinstance(number, int | float) or 0 <= number < math.inf
        require(usable, f"--{name} {number}: a setting is never negative, and a number")
    require(name != "seed" or value < SEEDS, f"--seed {value}: a seed is below 2 ** 32")


def defaults_of(*modules, **changed):
    """The settings of some blocks as `settings` returns them, without a command line; `changed` holds."""
    values = {}
    for module in modules:
        values |= {name: vars(module)[name] for name, _ in stated(module.__file__)}
    return argparse.Namespace(**values | changed)


def output_of(args, name):
    """RESULTS/NAME, of planted people RESULTS/NAME_synthetic.

    InputError: what will be written there cannot be.
    """
    output = args.results / (f"{name}_synthetic" if args.synthetic else name)
    require_apart([f"{output}.json", f"{output}.png"], [])
    return output
