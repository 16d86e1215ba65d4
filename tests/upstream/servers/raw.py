"""A hand-written server over stdio that speaks any version and misbehaves when asked to. Standard library only.

    python -m tests.upstream.servers.raw '{"version": "2024-11-05", "probe": "exit"}'

`asks_roots`: it asks for directories when it is greeted, as servers do that take them from their client.
`probe` says what happens at `server/discover`: `error`, `exit`, `silent`, `junk`, or `modern` (it is a modern server).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

OPTIONS: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
VERSION = OPTIONS.get("version", "2025-11-25")
PROBE = OPTIONS.get("probe", "error")
NAMES = (
    "echo", "progress", "log", "ask", "sample", "roots", "ask_both", "ask_and_go", "withdraw", "die", "hang", "twice",
    "wrong_id", "noise", "half", "nan", "deep", "big", "flood", "slow_bytes", "no_content", "bad_result", "seen",
    "null_params", "list_params", "text_id", "float_id",
    "utf8", "ping", "unanswerable", "questions", "error", "page", "directories", "elicit",
    "after_die", "many_values",
)  # fmt: skip
OUT = threading.Lock()
SEEN: list[Any] = []
LATE: list[Any] = []  # ids of probes that are answered after `initialize` only
DISCOVERED = {
    "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {"listChanged": True}}, "ttlMs": 0,
    "cacheScope": "public",
}  # fmt: skip
ANSWERS: dict[Any, Any] = {}
ANSWERED = threading.Condition()
FORM = {"type": "object", "properties": {"name": {"type": "string"}}}


def write(data: bytes) -> None:
    with OUT:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def send(message: dict[str, Any]) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def answer(id: Any, result: dict[str, Any]) -> None:
    if PROBE == "modern":
        result = {"resultType": "complete", **result}
    send({"id": id, "result": result})


def text(id: Any, words: str, **more: Any) -> None:
    answer(id, {"content": [{"type": "text", "text": words}], **more})


def ask(key: str, method: str, params: Any) -> Any:
    """Ask the client something and wait."""
    send({"id": key, "method": method, "params": params})
    with ANSWERED:
        ANSWERED.wait_for(lambda: key in ANSWERS, 60)
        return ANSWERS.get(key)


def said(reply: Any) -> str:
    if reply is None:
        return "nothing"
    return json.dumps(reply.get("result", reply.get("error")), sort_keys=True)


def elicit(key: str, words: str = "Who?") -> Any:
    return ask(key, "elicitation/create", {"message": words, "requestedSchema": FORM})


def run(id: Any, name: str, arguments: dict[str, Any], meta: dict[str, Any]) -> None:
    """Run one tool in a thread of its own."""
    if name == "progress":
        for number in (1, 2, 3):
            params = {"progressToken": meta.get("progressToken"), "progress": number, "total": 3}
            send({"method": "notifications/progress", "params": params})
        text(id, "done")
    elif name == "log":
        send({"method": "notifications/message", "params": {"level": "info", "data": "hello", "logger": "raw"}})
        text(id, "logged")
    elif name == "ask":
        text(id, said(elicit(f"ask-{id}")))
    elif name == "sample":
        message = {"role": "user", "content": {"type": "text", "text": "hi"}}
        text(id, said(ask(f"ask-{id}", "sampling/createMessage", {"messages": [message], "maxTokens": 9})))
    elif name == "roots":
        text(id, said(ask(f"ask-{id}", "roots/list", {})))
    elif name in ("null_params", "list_params"):
        text(id, said(ask(f"ask-{id}", "roots/list", None if name == "null_params" else [7])))
    elif name in ("text_id", "float_id"):
        text(str(id) if name == "text_id" else float(id), "mine all the same")
    elif name == "ask_both":
        ask_in_thread = threading.Thread(target=elicit, args=(f"b-{id}", "Second?"))
        ask_in_thread.start()
        first = elicit(f"a-{id}", "First?")
        ask_in_thread.join()
        text(id, said(first) + said(ANSWERS.get(f"b-{id}")))
    elif name == "ask_and_go":
        send({"id": f"ask-{id}", "method": "elicitation/create", "params": {"message": "?", "requestedSchema": FORM}})
        text(id, "did not wait")
    elif name == "withdraw":
        send({"id": f"ask-{id}", "method": "elicitation/create", "params": {"message": "?", "requestedSchema": FORM}})
        send({"method": "notifications/cancelled", "params": {"requestId": f"ask-{id}"}})
        text(id, "never mind")
    elif name == "unanswerable":
        text(id, said(ask(f"ask-{id}", "vendor/secret", {})))
    elif name == "questions":
        for number in range(100):
            question = {"message": "?", "requestedSchema": FORM}
            send({"id": f"q{number}-{id}", "method": "elicitation/create", "params": question})
        with ANSWERED:
            ANSWERED.wait_for(lambda: sum("error" in reply for reply in ANSWERS.values()) >= 80, 30)
        text(id, str(sum("error" in reply for reply in ANSWERS.values())))
    elif name in ("die", "after_die"):
        mark = arguments.get("mark")
        if mark and os.path.exists(mark) and os.path.getsize(mark) >= arguments.get("times", 1):
            text(id, "alive again")
            return
        if mark:
            with open(mark, "a") as file:
                file.write("x")
        os._exit(3)
    elif name == "hang":
        time.sleep(600)
    elif name == "twice":
        text(id, "first")
        text(id, "second")
    elif name == "wrong_id":
        text(999_999, "not yours")
        send({"id": "a string", "result": {}})
        text(id, "mine")
    elif name == "noise":
        write(b"Listening on stdin!\n\xff\xfe\xfd\n{}\n[]\n17\n\n   \n")
        write(b'{"jsonrpc":"2.0","id":null,"result":{}}\n')
        text(id, "through the noise")
    elif name == "half":
        write(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"te' % id)
        os._exit(0)
    elif name == "nan":
        write(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"structuredContent":{"x":NaN}}}\n' % id)
    elif name == "deep":
        write(b'{"jsonrpc":"2.0","id":%d,"result":%s%s}\n' % (id, b'{"a":' * 100_000 + b"1", b"}" * 100_000))
    elif name == "utf8":
        write(b'{"result":{"content":[{"type":"text","text":"\xff\xfe"}]},"jsonrpc":"2.0","id":%d}\n' % id)
    elif name == "big":
        text(id, "x" * int(arguments["bytes"]))
    elif name == "many_values":
        write(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"structuredContent":{"x":[%s0]}}}\n'
              % (id, b"0," * int(arguments["count"])))  # fmt: skip
    elif name == "flood":
        line = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}\n'
        for _ in range(int(arguments["lines"]) // 100):
            write(line * 100)
        text(id, "flooded")
    elif name == "slow_bytes":
        data = json.dumps({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": "drip"}]}})
        for byte in data.encode():
            write(bytes([byte]))
        write(b"\n")
    elif name == "no_content":
        answer(id, {"nothing": True})
    elif name == "bad_result":
        send({"id": id, "result": [1, 2]})
    elif name == "seen":
        answer(id, {"content": [], "structuredContent": {"seen": SEEN, "pid": os.getpid()}})
    elif name == "ping":
        text(id, said(ask(f"ping-{id}", "ping", {})))
    elif name == "page":
        if arguments.get("done"):
            send({"method": "notifications/elicitation/complete", "params": {"elicitationId": arguments["done"]}})
            text(id, "done")
        elif any(call["params"]["arguments"].get("opened") for call in SEEN if call["method"] == "tools/call"):
            text(id, "thank you")
        else:
            page = {"mode": "url", "elicitationId": "e1", "url": "https://example.com/page", "message": "Sign in"}
            error = {"code": -32042, "message": "a page has to be opened", "data": {"elicitations": [page]}}
            send({"id": id, "error": error})
    elif name == "elicit":
        text(id, said(ask(f"ask-{id}", "elicitation/create", arguments["params"])))
    elif name == "directories":
        with ANSWERED:
            text(id, said(ANSWERS.get("first-roots")))
    elif name == "error":
        send({"id": id, "error": {"code": -32050, "message": "no such luck", "data": {"why": "test"}}})
    else:
        text(id, str(arguments.get("text", "")), structuredContent=arguments, **{"vendor/field": {"kept": True}})


def handle(message: dict[str, Any]) -> None:
    method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
    if method is None:
        with ANSWERED:
            ANSWERS[id] = message
            ANSWERED.notify_all()
        return
    SEEN.append({"method": method, "params": params} if len(str(params)) < 10_000 else {"method": method})
    if method == "server/discover":
        probe(id)
    elif method == "initialize" and PROBE == "modern":
        send({"id": id, "error": {"code": -32022, "message": "Unsupported protocol version"}})
        if LATE:
            answer(LATE.pop(), DISCOVERED)
    elif method == "initialize":
        capabilities = {"tools": {"listChanged": True}, "logging": {}, **OPTIONS.get("capabilities", {})}
        answer(id, {"protocolVersion": VERSION, "capabilities": capabilities, "serverInfo": {"name": "raw"}})
    elif method == "notifications/initialized" and OPTIONS.get("asks_roots"):
        send({"id": "first-roots", "method": "roots/list"})
    elif method == "tools/list":
        answer(id, listing(params.get("cursor")))
    elif method == "tools/call":
        work = (id, params["name"], params.get("arguments") or {}, params.get("_meta") or {})
        threading.Thread(target=run, args=work, daemon=True).start()
    elif id is not None and method in ("ping", "logging/setLevel"):
        answer(id, {})
    elif id is not None:
        send({"id": id, "error": {"code": -32601, "message": "Method not found"}})


def probe(id: Any) -> None:
    if PROBE == "exit":
        os._exit(1)
    elif PROBE == "junk":
        send({"id": id, "result": {"hello": "world"}})
    elif PROBE == "modern":
        if OPTIONS.get("answers_late"):
            LATE.append(id)
        else:
            answer(id, DISCOVERED)
    elif PROBE == "error":
        send({"id": id, "error": {"code": -32601, "message": "Method not found"}})


def listing(cursor: str | None) -> dict[str, Any]:
    kind = OPTIONS.get("list", "good")
    if kind == "endless":
        return {"tools": [], "nextCursor": f"{int(cursor or 0) + 1}"}
    if kind == "loop":
        return {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}] if cursor is None else [],
                "nextCursor": "again"}  # fmt: skip
    tools: list[Any] = [{"name": name, "inputSchema": {"type": "object"}, "x-vendor": {"kept": name}} for name in NAMES]
    if kind == "bad_tools":
        fine = {"type": "object"}
        tools += [{"name": "no_schema"}, {"name": 7, "inputSchema": {}}, "no object"]
        tools += [{"name": "bool", "inputSchema": True}, {"name": "n" * 200, "inputSchema": fine}]
        tools += [{"name": "echo2", "inputSchema": fine}, {"name": "echo2", "inputSchema": fine}]
    if kind == "useless_tools":
        task = {"name": "task", "inputSchema": {"type": "object"}, "execution": {"taskSupport": "required"}}
        wrong = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
        lost = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
        tools += [task, {"name": "wrong", "inputSchema": wrong}, {"name": "lost", "inputSchema": lost}]
        tools += [{"name": "out", "inputSchema": {"type": "object"}, "outputSchema": lost}]
    return {"tools": tools}


if __name__ == "__main__":
    for line in sys.stdin.buffer:
        handle(json.loads(line))
