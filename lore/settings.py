"""Settings of a script: a ruled block of constants, each of them a flag as well."""

import argparse
import math
import re
from pathlib import Path

from lore.common import InputError

SETTING = re.compile(r"^(\w+) = .*?(?:\s+# (.*))?$")


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message} (--help lists the flags)")


def settings(module):
    """Flags of a script, from its own settings block: `module` is its globals().

    Every `name = value  # meaning` between the two ruled lines is the flag --name with that default and that help.
    """
    source = Path(module["__file__"]).read_text()
    block = source.split("settings ---", 1)[1].split("# ---", 1)[0]
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(
        description=module["__doc__"], formatter_class=layout, allow_abbrev=False
    )
    for name, meaning in (
        match.groups() for match in map(SETTING.match, block.splitlines()) if match
    ):
        default = module[name]
        if isinstance(default, range | tuple):
            default = list(default)
        if name in ("data", "results"):
            default = Path(default)
        kind = {"type": type(default)}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, list):
            kind = {"type": type(default[0]) if default else str, "nargs": "+"}
        parser.add_argument(
            f"--{name}",
            default=default,
            help=f"{meaning or ''} [{default}]".replace("%", "%%"),
            **kind,
        )
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not 0 <= number < math.inf:
                raise InputError(f"--{name} {number}: a setting is never negative, and a number")
            if name == "seed" and number >= 2**32:
                raise InputError(f"--seed {number}: a seed is below 2 ** 32")
    return arguments


def alphas_of(args):
    """The alpha_list of a script's settings, or no pull where the solver finds its own."""
    if args.solver == "ridge" and any(args.alpha_list):
        print(
            f"alpha_list = {args.alpha_list} is not used: the ridge solver chooses its own pull to the head"
        )
    return [0.0] if args.solver == "ridge" else args.alpha_list


def repeats_of(args):
    """Lists of seeds: one list for one split, or, to draw each repeat's split anew, a list for each."""
    if args.repeats < 1:
        raise InputError("repeats = 0: at least one is needed")
    seeds = [args.seed + i for i in range(args.repeats)]
    return [[seed] for seed in seeds] if args.resplit else [seeds]
