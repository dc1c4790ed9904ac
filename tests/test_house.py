"""The house as its source shows it: imports downward, sizes, density, the names that are promised."""

import ast
import inspect
import io
import tokenize

import pytest
from conftest import ROOT

import utils

# every module imports only modules before it in its own island, and the ground
GROUND = ["__init__", "processes", "common", "memory", "tables"]
PEOPLE = [
    "settings", "comparisons", "partition", "likelihood", "product", "one_read", "planted", "lbfgs", "objective",
    "own", "mixtures",
    "ridge", "evaluation", "best_rank", "baselines", "statistics",
    "basis", "newcomers", "questions", "sweeps", "shots", "printing", "pictures", "page", "report", "choices",
]  # fmt: skip
TEXT = [
    "values", "conversations", "inputs", "rewardbench", "bench_score", "encoder_settings", "packing", "attention",
    "positions", "checkpoint", "tally", "tokens", "vector_checks", "encoder", "embeddings", "checkpoint_export",
]  # fmt: skip
BOTH = ["applied"]  # stands on both islands
FOLDERS = ("RedditTLDR", "PRISM", "PersonalLLM", "OwnData", "CommunityAlignment", "apply")
LARGEST = 420  # lines of a module
DOUBLE = 12  # a, b = x, y in 1,000 lines of code
COMPREHENSIONS = 45  # the same
WIDTH = 100
WIDE = 0.08  # share of the lines that may be longer

CORE = [ROOT / "utils.py", *sorted((ROOT / "lore").glob("*.py"))]


def imports(file):
    """Modules that a file imports anywhere in it, `from a import b` being a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def lore_imports(file):
    modules = {path.stem for path in CORE[1:]}
    return {name[5:] for name in imports(file) if name[:5] == "lore." and name[5:] in modules}


@pytest.mark.parametrize("file", CORE[1:], ids=lambda file: file.stem)
def test_imports_point_downward_and_the_islands_meet_on_the_ground(file):
    known = [*GROUND, *PEOPLE, *TEXT, *BOTH]
    assert file.stem in known, f"lore/{file.name}: give it a place in the lists of test_house.py"
    island = next(names for names in (GROUND, PEOPLE, TEXT, BOTH) if file.stem in names)
    below = island[: island.index(file.stem)]
    allowed = {*below} if island is GROUND else {*GROUND, *below}
    if island is BOTH:
        allowed |= {*PEOPLE, *TEXT}
    upward = lore_imports(file) - allowed
    assert not upward, f"lore/{file.name} imports {', '.join(sorted(upward))}, not below it"


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_a_module_can_be_read_in_one_sitting(file):
    lines = len(file.read_text().splitlines())
    assert lines <= LARGEST, f"{file.name} has {lines} lines"


def test_scripts_stand_on_the_method_and_not_on_each_other():
    scripts = {}
    for folder in FOLDERS:
        for file in (ROOT / folder).glob("*.py"):
            scripts[file] = {name.split(".")[0] for name in imports(file)}
    assert {file.parent.name for file in scripts} == {*FOLDERS}
    names = {file.stem for file in scripts} - {"people"}
    for file, found in scripts.items():
        assert not found & names, f"{file} imports a script: {found & names}"
        assert not found & {*FOLDERS}, f"{file} imports a dataset folder: {found & {*FOLDERS}}"
    for file in CORE[1:]:
        found = {name.split(".")[0] for name in imports(file)}
        above = found & {*names, *FOLDERS, "people", "utils"}
        assert not above, f"lore/{file.name} imports {above}"


# ------------------------------------------------------------------------------------------------
# Density
# ------------------------------------------------------------------------------------------------


def code_lines(text):
    """How many lines hold code: no comment, no docstring, not empty."""
    layout = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    }  # fmt: skip
    rows = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            rows.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            rows.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(rows)


def is_double(node):
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return isinstance(node.targets[0], ast.Tuple)


def per_thousand(wanted):
    """Nodes of this kind in 1,000 lines of code, and where they are."""
    found = []
    lines = 0
    for file in CORE:
        text = file.read_text()
        lines += code_lines(text)
        for node in ast.walk(ast.parse(text)):
            if wanted(node):
                found.append(f"{file.name}:{node.lineno}")
    return 1000 * len(found) / lines, found


def test_a_statement_says_one_thing():
    density, found = per_thousand(is_double)
    assert density <= DOUBLE, f"{density:.0f} double assignments: {' '.join(found)}"


def test_comprehensions_are_few_and_go_over_one_loop():
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    density, found = per_thousand(lambda node: isinstance(node, kinds))
    assert density <= COMPREHENSIONS, f"{density:.0f} comprehensions: {' '.join(found)}"
    nested = per_thousand(lambda node: isinstance(node, kinds) and len(node.generators) > 1)[1]
    assert not nested, f"over two loops: {' '.join(nested)}"


def test_lines_are_short_and_no_rule_is_switched_off():
    lines = []
    for file in CORE:
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


@pytest.mark.parametrize("name", PROMISED)
def test_published_calls_keep_working(name):
    promised = getattr(utils, name)
    assert promised.__module__ == "utils", f"{name} is not defined in utils.py"
    parameters = inspect.signature(promised).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == PROMISED[name].split()
    assert all(p.default is p.empty for p in positional)


def test_what_utils_lists_can_be_imported_from_it():
    assert {*PROMISED} <= {*utils.__all__} and len({*utils.__all__}) == len(utils.__all__)
    for name in utils.__all__:
        assert hasattr(utils, name), name
