"""Imports point one way: contracts <- {chain, protocol} <- engines <- serving <- assembly <- cli."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "omni_mcp"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each layer may import of our own, besides itself.
MAY_IMPORT = {
    "contracts": set(),
    "paths": set(),
    "host_places": {"paths"},
    "turns": set(),
    "config": {"contracts", "server_definition"},
    "datalock": {"contracts", "paths"},
    "migrations": {"contracts"},
    "deadline": set(),
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
        "migrations",
        "paths",
        "protocol",
        "server_definition",
        "sqlite_settings",
        "time_limits",
        "turns",
    },
    "serving": {"contracts", "chain", "deadline", "protocol", "engines", "paths", "time_limits"},
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
MAY_IMPORT["daemon"] = MAY_IMPORT["assembly"] | {"assembly", "replay", "datalock", "logs", "__init__"}
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


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_layer_may(file: Path) -> None:
    layer = layer_of(file)
    for line, module in own_imports(ast.parse(file.read_text())):
        target = module.split(".")[1]
        if target == "__version__":
            continue
        assert target == layer or target in MAY_IMPORT[layer], f"{file}:{line} ({layer}) imports {module}"


@pytest.mark.parametrize(
    "file", sorted((PACKAGE / "engines").rglob("*.py")), ids=lambda file: "/".join(file.parts[-2:])
)
def test_engines_do_not_import_each_other(file: Path) -> None:
    engine = file.relative_to(PACKAGE / "engines").parts[0]
    for line, module in own_imports(ast.parse(file.read_text())):
        parts = module.split(".")
        if parts[1] == "engines":
            assert len(parts) > 2 and parts[2] == engine, f"{file}:{line} imports another engine: {module}"


@pytest.mark.parametrize(
    "file", sorted((PACKAGE / "engines").rglob("*.py")), ids=lambda file: "/".join(file.parts[-2:])
)
def test_only_the_engine_that_speaks_with_other_servers_knows_the_protocol(file: Path) -> None:
    if file.relative_to(PACKAGE / "engines").parts[0] == "upstream":
        return
    for line, module in own_imports(ast.parse(file.read_text())):
        assert module.split(".")[1] != "protocol", f"{file}:{line} imports {module}"


def test_the_far_side_of_the_wall_imports_nothing_of_ours() -> None:
    for file in sorted((PACKAGE.parent / "sandbox").rglob("*.py")):
        assert not own_imports(ast.parse(file.read_text())), file


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_own_module_is_imported_inside_a_function(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert not own_imports(node), f"{file}:{node.lineno} {node.name}"


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "__init__.py" and f.parent != PACKAGE])
def test_only_the_top_package_has_an_init_with_content(file: Path) -> None:
    assert file.read_text() == ""
