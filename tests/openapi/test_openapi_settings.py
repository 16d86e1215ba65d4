"""What omni.toml says of a document: what is refused, with its line, and what the page shows works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from omni_mcp.config import Settings, load_settings, read_secrets
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.openapi import check_base_url
from omni_mcp.contracts.tool import Entry
from omni_mcp.opening.supplies import supplies_of
from omni_mcp.testing import home_in, write_private
from tests.openapi.world import PETSTORE, tools_of

FILE = """[secrets]
token = "env:TOKEN"

[openapi.shop]
document = "api.yaml"
base_url = "https://shop.example/v2"
exclude = ["DELETE *"]
credentials = [{secret = "token", prefix = "Bearer "}]

[openapi.shop.operations.createPet]
destructive = false
"""


def settings_of(tmp_path: Path, text: str = FILE) -> Settings:
    return load_settings(write_private(tmp_path / "omni.toml", text))


@pytest.mark.parametrize(
    ("old", "new", "line", "path"),
    [
        ("exclude =", "excluded =", 7, "openapi.shop.excluded"),
        ('document = "api.yaml"', 'document = ""', 5, "openapi.shop.document"),
        ("/v2", "/v2/../x", 6, "base_url"), ("/v2", "/v2/%2e%2e", 6, "base_url"), ("/v2", "/v2%2fx", 6, "base_url"),
        ("/v2", "/v2?x=1", 6, "base_url"), ("https://shop", "https://u:p@shop", 6, "base_url"),
        ("https://shop", "ftp://shop", 6, "base_url"), ("shop.example/v2", "shop.example:99999", 6, "base_url"),
        ('base_url = "https://shop.example/v2"\n', "", 4, "openapi.shop"),
        ('secret = "token"', 'secret = "nobody"', 8, "openapi.shop.credentials"),
        ('secret = "token"', 'secret = "token", header = "Host"', 8, "credentials"),
        ('secret = "token"', 'secret = "token", header = "X Y"', 8, "credentials"),
        ('prefix = "Bearer "', 'prefix = "\\r\\n"', 8, "credentials"),
        ("}]", '}, {secret = "token", header = "authorization"}]', 4, "openapi.shop"),
        ("destructive = false", "destructive = true\nread_only = true", 10, "operations.createPet"),
        ("destructive = false", "egress = false", 11, "operations.createPet.egress"),
        ("destructive = false", "timeout_s = 591", 11, "timeout_s"),
        ("[openapi.shop]", "[openapi.tools]", 4, "openapi"), ("[openapi.shop]", "[openapi.Shop]", 4, "openapi"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, path: str
) -> None:
    assert settings_of(tmp_path).openapi["shop"].exclude == ("DELETE *",)
    text = FILE.replace(old, new, 1)
    assert text != FILE
    with pytest.raises(ConfigError) as refused:
        settings_of(tmp_path, text)
    problem = refused.value.problems[0]
    assert (path in problem.path, problem.line) == (True, line), str(problem)


def test_a_document_and_a_server_do_not_share_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is a server 'shop' already"):
        settings_of(tmp_path, FILE + '[servers.shop]\nurl = "https://mcp.example/"\n')


def test_one_address_has_one_spelling() -> None:
    spellings = ["https://A.example", "HTTPS://a.example/", "https://a.example//"]
    assert {check_base_url(text) for text in spellings} == {"https://a.example"}
    assert check_base_url("http://[::1]:8080/v1/") == "http://[::1]:8080/v1"


@pytest.mark.parametrize("token", ["", "two\nlines", "ünprintable"])
def test_a_secret_that_cannot_stand_in_a_header_is_refused_without_showing_it(tmp_path: Path, token: str) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(ConfigError) as refused:
        supplies_of(settings, {"token": token}, home_in(tmp_path))
    assert "$.openapi.shop.credentials.0.secret" in str(refused.value) and (
        not token or token not in str(refused.value)
    )


def test_a_credential_serves_the_operations_of_its_document_at_its_host_and_nothing_else(tmp_path: Path) -> None:
    supplies = supplies_of(settings_of(tmp_path), {"token": "t0ken"}, home_in(tmp_path))
    operation = Entry(kind="tool", server="shop", name="listPets", definition={}, binding="openapi_proxy")
    (found,) = supplies.credentials_for(operation, ("shop.example:443",))
    assert (found.host, found.header, found.value) == ("shop.example:443", "Authorization", "Bearer t0ken")
    job = Entry(kind="tool", server="shop", name="listPets", definition={}, binding="sandbox_job")
    other = Entry(kind="tool", server="shop2", name="listPets", definition={}, binding="openapi_proxy")
    for entry, hosts in ((job, ("shop.example:443",)), (other, ("shop.example:443",)), (operation, ("b.example:443",))):
        assert supplies.credentials_for(entry, hosts) == ()


def test_the_settings_that_the_page_shows_are_taken(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "openapi.md").read_text("utf-8")
    shown = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    settings = settings_of(tmp_path, "\n".join(shown))
    assert read_secrets(settings, {"PETSHOP_TOKEN": "t"}) == {"petshop": "t"}
    document = settings.openapi["petshop"]
    found = tools_of(
        tmp_path, PETSTORE, **{name: getattr(document, name) for name in document.model_fields_set - {"document"}}
    )
    assert "listPets" in found and "deletePet" not in found and not found["createPet"].labels.destructive
