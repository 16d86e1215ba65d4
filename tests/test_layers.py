"""Imports point one way: contracts <- {chain, protocol} <- engines <- serving <- assembly <- cli."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "omni_mcp"
FILES = sorted(PACKAGE.rglob("*.py"))
Imports = dict[Path, list[tuple[int, str]]]

# What each layer may import of our own, besides itself.
MAY_IMPORT = {
    "contracts": set(),
    "paths": set(),
    "host_places": {"paths"},
    "short_turns": set(),
    "turns": set(),
    "config": {"contracts", "server_definition"},
    "datalock": {"contracts", "paths"},
    "migrations": {"contracts"},
    "deadline": set(),
    "known_heads": set(),
    "endings": set(),
    "time_limits": set(),
    "sqlite_settings": set(),
    "toml_writer": set(),
    "server_definition": {"contracts"},
    "servers_file": {"contracts", "host_places", "paths", "server_definition", "toml_writer"},
    "clients": {"contracts", "host_places", "paths", "server_definition", "servers_file", "toml_writer"},
    "logs": {"contracts"},
    "chain": {"contracts", "time_limits"},
    "protocol": {"contracts"},
    # the protocol's words and definitions of servers: engines/upstream, and no other
    "engines": {
        "contracts",
        "deadline",
        "endings",
        "host_places",
        "known_heads",
        "migrations",
        "paths",
        "protocol",
        "server_definition",
        "short_turns",
        "sqlite_settings",
        "time_limits",
        "turns",
    },
    "serving": {"contracts", "chain", "deadline", "known_heads", "protocol", "engines", "paths", "time_limits"},
    "client": {"contracts", "paths"},
    "filewatch": set(),
    "upstreams": {
        "config",
        "contracts",
        "engines",
        "filewatch",
        "host_places",
        "paths",
        "plugins",
        "server_definition",
        "servers_file",
        "turns",
    },
    "plugins": {"contracts", "engines"},
    "running": {
        "plugins",
        "contracts",
        "chain",
        "protocol",
        "engines",
        "serving",
        "config",
        "paths",
        "filewatch",
        "upstreams",
    },
}
MAY_IMPORT["gateway"] = MAY_IMPORT["running"] | {"running"}
MAY_IMPORT["opening"] = MAY_IMPORT["running"] | {"running", "host_places", "server_definition"}
MAY_IMPORT["assembly"] = MAY_IMPORT["gateway"] | {"gateway", "opening", "server_definition"}
MAY_IMPORT["replay"] = MAY_IMPORT["assembly"] | {"assembly", "datalock", "__init__"}
MAY_IMPORT["daemon"] = MAY_IMPORT["assembly"] | {"assembly", "replay", "datalock", "logs", "short_turns", "__init__"}
MAY_IMPORT["testing"] = MAY_IMPORT["daemon"]
MAY_IMPORT["cli"] = MAY_IMPORT["daemon"] | {
    "daemon",
    "replay",
    "clients",
    "host_places",
    "server_definition",
    "servers_file",
}
MAY_IMPORT["reference"] = MAY_IMPORT["cli"] | {"cli"}
MAY_IMPORT["__init__"] = {"assembly", "client", "config", "contracts"}


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.startswith("omni_mcp.")]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "omni_mcp":
                found += [(node.lineno, f"omni_mcp.{alias.name}") for alias in node.names]
            elif node.module and node.module.startswith("omni_mcp."):
                found.append((node.lineno, node.module))
    return found


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every file of the package, read once."""
    return {file: ast.parse(file.read_text()) for file in FILES}


@pytest.fixture(scope="module")
def imports(trees: dict[Path, ast.Module]) -> Imports:
    """What each file imports of our own, with the lines."""
    return {file: own_imports(tree) for file, tree in trees.items()}


def test_a_file_imports_only_what_its_layer_may(imports: Imports) -> None:
    wrong = [
        f"{file}:{line} ({layer_of(file)}) imports {module}"
        for file, found in imports.items()
        for line, module in found
        if module.split(".")[1] not in {"__version__", layer_of(file), *MAY_IMPORT.get(layer_of(file), ())}
    ]
    assert wrong == []


def test_engines_do_not_import_each_other(imports: Imports) -> None:
    wrong = [
        f"{file}:{line} imports another engine: {module}"
        for file, engine, line, module in of_engines(imports)
        if module.split(".")[1] == "engines" and module.split(".")[2:3] != [engine]
    ]
    assert wrong == []


def test_only_the_engine_that_speaks_with_other_servers_knows_the_protocol(imports: Imports) -> None:
    wrong = [
        f"{file}:{line} imports {module}"
        for file, engine, line, module in of_engines(imports)
        if module.split(".")[1] == "protocol" and engine != "upstream"
    ]
    assert wrong == []


def of_engines(imports: Imports) -> Iterator[tuple[Path, str, int, str]]:
    for file, found in imports.items():
        if layer_of(file) == "engines":
            for line, module in found:
                yield file, file.relative_to(PACKAGE / "engines").parts[0], line, module


def test_the_far_side_of_the_wall_imports_nothing_of_ours() -> None:
    for file in sorted((PACKAGE.parent / "sandbox").rglob("*.py")):
        assert not own_imports(ast.parse(file.read_text())), file


def test_no_own_module_is_imported_inside_a_function(trees: dict[Path, ast.Module]) -> None:
    wrong = [
        f"{file}:{node.lineno} {node.name}"
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and own_imports(node)
    ]
    assert wrong == []


def test_only_the_top_package_has_an_init_with_content() -> None:
    inits = [file for file in FILES if file.name == "__init__.py" and file.parent != PACKAGE]
    assert inits and [file for file in inits if file.read_text()] == []
