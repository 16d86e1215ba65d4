"""Edits of JSON and TOML texts: one member or table changes, every other byte stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.clients.json_edit import CannotEdit, RawValue, raw_value, remove_members, set_member
from omni_mcp.clients.jsonc import NotJson, read_jsonc
from omni_mcp.clients.toml_edit import NotToml, append_tables, raw_tables, read_toml, remove_table, set_table

ENTRY = {"command": "/opt/omni-mcp", "args": ["stdio"]}
WAY = ["mcpServers"]
TABLE = ["mcp_servers", "omni"]

JSON_TEXTS = [
    "", "{}", "{}\n", "\ufeff", "\ufeff{}", "// only a comment\n", "{ }", "{\n}", '{"a":1}', '{"a":1,}',
    '{ "mcpServers": {"x": {"command":"y"}} }', '{\n  "mcpServers": {}\n}\n', '{\r\n    "z": 1\r\n}',
    '{\n\t"mcpServers": {\n\t\t"x": {"command": "y"}, // of x\n\t},\n}\n',
    '{\n  "mcpServers": { "a": {"command":"b"} }\n}', '{ // c\n  /* d */ "mcpServers": { // none\n  }\n}',
    '{\n  "mcpServers": {\n    // before x\n    "x": {} // behind x\n    , "y": {}\n  }, "tail": [1, 2,]\n}',
]  # fmt: skip
TOML_TEXTS = [
    "", "a = 1", "a = 1\n", "# only a comment\n", "\ufeffa = 1\n", "a = 1\r\n\r\n[t]\r\nb = 2",
    '[[list]]\nx = 1\n[mcp_servers.a]\ncommand = "y"\nargs = [\n  "[mcp_servers.b]",\n]\n',
    "[mcp_servers.a]\nx = '''\n[no.table]\n'''\n\n# about c\n[c] # behind c\n\"[d]\" = 1\n",
    'a = "# [x]"\nb = \'[y]\'\nc = {d = [1, {e = 2}]}\n[ mcp_servers . "a b" ]\nx = 1\n',
]  # fmt: skip


def json_of(text: str) -> Any:
    return read_jsonc(text).value


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_a_new_member_is_there_and_the_rest_says_what_it_said(text: str) -> None:
    changed = set_member(text, WAY, "omni", ENTRY)
    assert json_of(changed)["mcpServers"]["omni"] == ENTRY
    left = json_of(changed)
    del left["mcpServers"]["omni"]
    wanted = json_of(text)
    wanted.setdefault("mcpServers", {})
    assert left == wanted
    assert list(left) == list(dict.fromkeys([*(["mcpServers"] if "mcpServers" not in json_of(text) else []), *wanted]))


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_setting_it_again_changes_nothing_and_comments_and_line_ends_stay(text: str) -> None:
    changed = set_member(text, WAY, "omni", ENTRY)
    assert set_member(changed, WAY, "omni", ENTRY) == changed
    for part in ("// only a comment", "// of x", "// c", "/* d */", "// none", "// before x", "// behind x", "\ufeff"):
        assert (part in changed) == (part in text)
    if "\r\n" in text:
        assert "\n" not in changed.replace("\r\n", "")


@pytest.mark.parametrize("text", [text for text in JSON_TEXTS if '"x"' in text and "\n" in text])
def test_taken_out_again_the_text_is_the_same_to_the_byte(text: str) -> None:
    assert remove_members(set_member(text, WAY, "omni", ENTRY), WAY, ["omni"]) == text


@pytest.mark.parametrize("key", ["first", "middle", "last"])
@pytest.mark.parametrize("comma", ["", ","])
def test_any_member_can_be_taken_out_and_put_back_as_it_stood(key: str, comma: str) -> None:
    members = f'    "first": [1], // one\n    "middle": {{ "a":1 }},\n    "last": "x"{comma} // three\n'
    text = f'{{\n  "m": {{\n{members}  }}\n}}'
    raw = raw_value(text, ["m"], key)
    without = remove_members(text, ["m"], [key])
    assert raw is not None
    wanted = json_of(text)
    del wanted["m"][key]
    assert json_of(without) == wanted
    assert "// one" in without and "// three" in without
    back = set_member(without, ["m"], key, raw)
    assert json_of(back) == json_of(text)
    assert raw.text in back


def test_of_two_members_of_one_name_the_one_that_counts_is_changed_and_both_are_taken_out() -> None:
    text = '{"m": {"a": 1, "b": 2, "a": 3}}'
    assert set_member(text, ["m"], "a", {"x": 1}) == '{"m": {"a": 1, "b": 2, "a": {"x": 1}}}'
    assert json_of(remove_members(text, ["m"], ["a"])) == {"m": {"b": 2}}


@pytest.mark.parametrize("text", ['{"m": {"a": 1,}}', '{"m": {"a": 1 /* , */ , // ,\n}}', '{"m": {"a": 1,\n},}'])
def test_the_only_member_goes_with_its_trailing_comma(text: str) -> None:
    assert json_of(remove_members(text, ["m"], ["a"])) == {"m": {}}
    assert json_of(set_member(remove_members(text, ["m"], ["a"]), ["m"], "b", {})) == {"m": {"b": {}}}


def test_a_missing_way_is_made() -> None:
    changed = set_member('{\n  "a": 1\n}\n', ["projects", "/p", "mcpServers"], "omni", ENTRY)
    assert json_of(changed) == {"a": 1, "projects": {"/p": {"mcpServers": {"omni": ENTRY}}}}


@pytest.mark.parametrize("text", ["[]", "5", '{"mcpServers": []}', '{"mcpServers": null}'])
def test_where_there_is_no_place_nothing_is_changed(text: str) -> None:
    with pytest.raises(CannotEdit):
        set_member(text, WAY, "omni", ENTRY)


@pytest.mark.parametrize("text", ["{", '{"a": 1', '{"a": NaN}'])
def test_what_cannot_be_read_is_not_edited(text: str) -> None:
    with pytest.raises(NotJson):
        set_member(text, WAY, "omni", ENTRY)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
styles = st.sampled_from([None, 1, 2, "\t"])


@settings(max_examples=200, deadline=None)
@given(
    servers=st.dictionaries(st.text(max_size=5), values, max_size=4),
    rest=st.dictionaries(st.text(max_size=5), values, max_size=3),
    indent=styles,
    crlf=st.booleans(),
    comment=st.booleans(),
    which=st.integers(0, 3),
)
def test_any_file_keeps_its_meaning(
    servers: dict[str, Any], rest: dict[str, Any], indent: int | str | None, crlf: bool, comment: bool, which: int
) -> None:
    whole = {**rest, "mcpServers": servers}
    text = json.dumps(whole, indent=indent, ensure_ascii=False)
    if comment and indent is not None:
        text = text.replace(",\n", ', // "}{\n')
    if crlf:
        text = text.replace("\n", "\r\n")
    changed = set_member(text, WAY, "omni", ENTRY)
    assert json_of(changed) == {**whole, "mcpServers": {**servers, "omni": ENTRY}}
    names = list(servers)
    if which < len(names):
        gone = remove_members(changed, WAY, [names[which]])
        left = {**servers, "omni": ENTRY}
        del left[names[which]]
        assert json_of(gone) == {**whole, "mcpServers": left}
    assert json_of(remove_members(changed, WAY, ["omni"]))["mcpServers"].get("omni") is None


@pytest.mark.parametrize("text", TOML_TEXTS)
def test_a_new_table_is_there_and_the_rest_stays_to_the_byte(text: str) -> None:
    changed = set_table(text, TABLE, ENTRY)
    assert changed.startswith(text)
    assert read_toml(changed)["mcp_servers"]["omni"] == ENTRY
    assert set_table(changed, TABLE, ENTRY) == changed
    if "\r\n" in text:
        assert "\n" not in changed.replace("\r\n", "")


@pytest.mark.parametrize("text", [text for text in TOML_TEXTS if text.endswith("\n") or not text])
def test_a_table_taken_out_again_leaves_the_text_the_same_to_the_byte(text: str) -> None:
    assert remove_table(set_table(text, TABLE, ENTRY), TABLE) == text


def test_a_table_is_replaced_where_it_stands() -> None:
    text = '[a]\nx = 1\n\n[mcp_servers.omni]\ncommand = "old"\n[mcp_servers.omni.env]\nA = "1"\n\n# b\n[b]\ny = 1\n'
    assert set_table(text, TABLE, {"command": "new"}) == (
        '[a]\nx = 1\n\n[mcp_servers.omni]\ncommand = "new"\n\n# b\n[b]\ny = 1\n'
    )


def test_tables_below_go_and_come_with_their_table() -> None:
    text = '[mcp_servers.a]\ncommand = "x"\n[mcp_servers.a.env]\nK = "v" # kept\n\n# about b\n[mcp_servers.b]\ny = 1\n'
    raw = raw_tables(text, ["mcp_servers", "a"])
    without = remove_table(text, ["mcp_servers", "a"])
    assert without == "# about b\n[mcp_servers.b]\ny = 1\n"
    assert raw is not None
    back = append_tables(without, raw)
    assert read_toml(back) == read_toml(text) and "# kept" in back


@pytest.mark.parametrize(
    "text",
    [
        "mcp_servers = {}\n",
        '[mcp_servers]\nomni = {command = "x"}\n',
        'mcp_servers.omni.command = "x"\n',
        "mcp_servers = 1\n",
    ],
)
def test_a_table_that_is_written_inline_is_left_to_the_person(text: str) -> None:
    with pytest.raises(CannotEdit):
        set_table(text, TABLE, ENTRY)


def test_an_inline_table_is_not_taken_out() -> None:
    with pytest.raises(CannotEdit):
        remove_table('[mcp_servers]\nomni = {command = "x"}\n', TABLE)


def test_what_is_no_toml_is_not_edited() -> None:
    with pytest.raises(NotToml):
        set_table("a = \n", TABLE, ENTRY)


def test_a_raw_value_is_put_in_as_it_is() -> None:
    assert set_member('{"m": {}}', ["m"], "a", RawValue('{ "b" :1 }')).count('{ "b" :1 }') == 1
