"""The house stands: imports run downhill, without rings, and each thing is written in one place."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import worldpm

ROOT = Path(worldpm.__file__).parent
REPOSITORY = Path(__file__).parents[1]
FLOORS = ("field", "formats", "parts", "rlhf", "steps", "stories", "cli")


def modules() -> dict[str, Path]:
    return {
        ".".join(["worldpm", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path for path in ROOT.rglob("*.py")
    }


def imports(path: Path) -> set[str]:
    """Every module of the package that a file imports, also inside functions."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("worldpm"):
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return {name for name in found if name in known}


def floor(module: str) -> int:
    name = module.split(".")[1] if "." in module else "cli"
    return FLOORS.index(name)


def test_a_module_imports_its_own_floor_or_a_lower_one() -> None:
    climbs = [
        f"{module} -> {target}"
        for module, path in modules().items()
        if module != "worldpm"
        for target in imports(path)
        if floor(target) > floor(module)
    ]
    assert climbs == []


def test_there_is_no_ring_of_imports() -> None:
    graph = {module: imports(path) - {module} for module, path in modules().items() if module != "worldpm"}
    while leaves := [module for module, targets in graph.items() if not targets & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert sorted(graph) == []


def users_of(word: str) -> set[str]:
    return {module for module, path in modules().items() if word in path.read_text(encoding="utf-8")}


def test_only_chat_renders_conversations() -> None:
    assert users_of("apply_chat_template") == {"worldpm.model.chat"}


def test_only_tables_speaks_to_the_data_engine() -> None:
    assert users_of("import ibis") == {"worldpm.storage.tables"}


def test_the_preference_formulas_stand_in_one_module() -> None:
    assert users_of("softplus") | users_of("logsigmoid") == {"worldpm.stats.bradley_terry"}


def test_scripts_import_what_is_there() -> None:
    for script in (path for folder in ("benchmarks", "lab", "runs") for path in (REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "worldpm":
                module = import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}"), f"{script.name}: {alias.name}"


def test_a_benchmark_never_sees_a_model() -> None:
    for module, path in modules().items():
        if module.startswith("worldpm.parts.benchmarks"):
            assert not {name for name in imports(path) if name.split(".")[-1] in ("scorer", "reward_model", "training")}


def test_importing_the_package_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, worldpm, worldpm.cli; print([m for m in ('torch', 'transformers', 'pyarrow', 'ibis') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"
