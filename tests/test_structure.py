"""The house as its source shows it: rooms, sizes, density, the names that are promised."""

import ast
import inspect

from conftest import ROOT

import utils

BELOW = {"ground": (), "text": ("ground",), "fit": ("ground",), "report": ("ground", "fit")}  # rooms
LORE = sorted((ROOT / "lore").rglob("*.py"))
CORE = [ROOT / "utils.py", *LORE]
DATA_SETS = ("RedditTLDR", "PRISM", "PersonalLLM", "OwnData", "CommunityAlignment")
SCRIPTS = [file for folder in (*DATA_SETS, "apply") for file in sorted((ROOT / folder).glob("*.py"))]
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
LARGEST = 420  # lines of a module
DOUBLE = 12  # a, b = x, y in 1,000 lines of code
COMPREHENSIONS = 45  # the same
WIDTH = 100
WIDE = 0.08  # share of the lines that may be longer


def imports(file):
    """Modules that a file imports anywhere in it, `from a import b` being a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def room(name):
    """ground, text, fit or report, of a module of lore/."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 else "ground"


def test_every_room_stands_on_those_below_it_alone():
    modules = {dotted(file): imports(file) for file in LORE if file.stem != "__init__"}
    arrows = {name: found & modules.keys() for name, found in modules.items()}
    wrong = []
    for name, below in arrows.items():
        allowed = (room(name), *BELOW[room(name)])
        wrong += [f"{name} -> {other}" for other in below if room(other) not in allowed]
    assert not wrong, wrong

    def reached(name, path):
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        for other in arrows[name]:
            reached(other, [*path, name])

    for name in arrows:
        reached(name, [])


def test_scripts_stand_on_the_method_and_not_on_each_other():
    wrong = []
    runs = {file.stem for file in SCRIPTS if "__main__" in file.read_text()}
    for file in [*SCRIPTS, *LORE]:
        first = {name.split(".")[0] for name in imports(file)}
        above = first & {*runs, *DATA_SETS, "apply", "benchmarks"}
        if file in LORE:
            above |= first & {"utils", *(script.stem for script in SCRIPTS)}
        wrong += [f"{file.relative_to(ROOT)} -> {name}" for name in above]
    assert not wrong, wrong


def test_a_script_finds_what_it_imports_wherever_it_is_started():
    for file in SCRIPTS:
        text = file.read_text()
        assert "Path(__file__).resolve().parent" in text or "__main__" not in text, file


def test_a_module_can_be_read_in_one_sitting():
    for file in [*CORE, *SCRIPTS, *BENCHMARKS]:
        assert len(file.read_text().splitlines()) <= LARGEST, file


# ------------------------------------------------------------------------------------------------
# Density
# ------------------------------------------------------------------------------------------------


def code_lines(text, nodes):
    """How many lines hold code: no comment, no docstring, not empty."""
    lines = [line.strip() for line in text.splitlines()]
    docstrings = 0
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings += sum(map(bool, lines[node.lineno - 1 : node.end_lineno]))
    return sum(bool(line) and not line.startswith("#") for line in lines) - docstrings


def is_double(node):
    """a, b = x, y"""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return isinstance(node.targets[0], ast.Tuple)


def is_comprehension(node):
    return isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp)


def is_nested(node):
    return is_comprehension(node) and len(node.generators) > 1


def test_a_statement_says_one_thing():
    for part in (CORE, SCRIPTS, BENCHMARKS):
        nodes = {file: [*ast.walk(ast.parse(file.read_text()))] for file in part}
        lines = sum(code_lines(file.read_text(), nodes[file]) for file in part)
        for kind, most in ((is_double, DOUBLE), (is_comprehension, COMPREHENSIONS), (is_nested, 0)):
            offenders = []
            for file in part:
                offenders += [f"{file.name}:{node.lineno}" for node in nodes[file] if kind(node)]
            density = 1000 * len(offenders) / lines
            assert density <= most, f"{kind.__name__} {density:.0f}: {' '.join(offenders)}"


def test_lines_are_short_and_no_rule_is_switched_off():
    for part in (CORE, SCRIPTS, BENCHMARKS):
        lines = []
        for file in part:
            lines += file.read_text().splitlines()
        assert not [line for line in lines if "# noqa" in line]
        wide = sum(len(line) > WIDTH for line in lines) / len(lines)
        assert wide <= WIDE, f"{100 * wide:.0f} % of the lines are longer than {WIDTH} characters"


# ------------------------------------------------------------------------------------------------
# What is promised
# ------------------------------------------------------------------------------------------------

MODEL = "num_classes num_features num_basis_vectors num_iterations learning_rate"
DATA = "train_features test_features_sparse train_features_unseen test_features_sparse_unseen"
PROMISED = {
    "LoRe": f"V_sft alpha {MODEL}",
    "LoRe_regularized": f"V_sft alpha {MODEL}",
    "PersonalizeBatch": MODEL,
    "run": f"K_list alpha_list V_final {DATA} N N_unseen device",
    "run_regularized": f"K_list alpha_list V_final {DATA} N N_unseen device",
    "run_few_shot_vary_shots": "trials alpha_list K_list num_shots train_features"
    " train_features_unseen test_features_sparse_unseen V_final N N_unseen device",
}


def test_published_calls_keep_working():
    for name, arguments in PROMISED.items():
        promised = getattr(utils, name)
        assert promised.__module__ == "utils", f"{name} is not defined in utils.py"
        parameters = inspect.signature(promised).parameters.values()
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [p.name for p in positional] == arguments.split()
        assert all(p.default is p.empty for p in positional)


def test_what_utils_lists_can_be_imported_from_it():
    assert {*PROMISED} <= {*utils.__all__} and len({*utils.__all__}) == len(utils.__all__)
    for name in utils.__all__:
        assert hasattr(utils, name), name


def test_the_first_page_is_short_and_shows_the_line_that_is_edited():
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / "RedditTLDR/train_basis.py").read_text().splitlines()
    (edited,) = [line for line in script if line.startswith("K_list = ")]
    assert f"\n    {edited}\n" in readme
    assert len(readme.splitlines()) <= 150
    pages = [page.read_text().splitlines() for page in (ROOT / "docs").glob("*.md")]
    assert sum(map(len, pages)) <= 800
