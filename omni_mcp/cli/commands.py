"""Which commands there are, and where; the help stands here too, so that `--help` imports none of them."""

from __future__ import annotations

# name -> (module, attribute, one line of help).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("omni_mcp.cli.init", "init", "Write a small policy to begin with."),
    "serve": ("omni_mcp.cli.serve", "serve", "Run the gateway: HTTP, HTTP+SSE and the local socket."),
    "stdio": (
        "omni_mcp.cli.stdio",
        "stdio_command",
        "Connect a client that speaks stdio; starts the gateway if needed.",
    ),
    "status": ("omni_mcp.cli.status", "status", "Show what runs, what waits and what is in force."),
    "doctor": (
        "omni_mcp.cli.doctor",
        "doctor",
        "Say what isolation, limits and permissions are in force, and what to do.",
    ),
    "demo": ("omni_mcp.cli.demo", "demo", "Walk one call through everything, on this machine, and clean up."),
    "allow": ("omni_mcp.cli.policy", "allow", "Write a small policy file that allows a tool."),
    "policy": ("omni_mcp.cli.policy", "policy", "Check, test and explain policies."),
    "explain": ("omni_mcp.cli.policy", "explain", "Show why a call was allowed or refused, and what would allow it."),
    "approvals": ("omni_mcp.cli.approvals", "approvals", "List, approve and deny calls that wait for a person."),
    "runs": ("omni_mcp.cli.runs", "runs", "List, show, follow, search and compare recorded runs."),
    "why": ("omni_mcp.cli.provenance", "why", "Show where an artifact came from, path by path."),
    "influence": ("omni_mcp.cli.provenance", "influence", "Show what an event went into."),
    "audit": ("omni_mcp.cli.audit", "audit", "Verify, export and anchor the run log."),
    "erase": ("omni_mcp.cli.audit", "erase", "Erase the texts of a run; the chain still verifies."),
    "retention": ("omni_mcp.cli.audit", "retention", "Erase runs that are older than the limit."),
    "db": ("omni_mcp.cli.audit", "db", "Maintain the database: rebuild projections."),
    "memory": ("omni_mcp.cli.memory", "memory", "List, find, import, export and forget what agents remember."),
    "eval": ("omni_mcp.cli.eval", "eval_command", "Replay a set of runs and print the pass rate."),
    "tools": ("omni_mcp.cli.tools", "tools", "List, show and lint tools."),
    "sandbox": ("omni_mcp.cli.sandbox", "sandbox", "Run a command in a cell; list, show and check sandbox profiles."),
    "contracts": ("omni_mcp.cli.contracts", "contracts", "Print the JSON Schemas of what is recorded and read."),
    "errors": ("omni_mcp.cli.contracts", "errors", "Print the failure catalogue."),
    "add": ("omni_mcp.cli.servers", "add", "Add a server behind the gateway: a command or a URL."),
    "servers": ("omni_mcp.cli.servers", "servers", "List, add, change and remove the servers behind the gateway."),
    "accept": (
        "omni_mcp.cli.accept",
        "accept_command",
        "Accept what a server offers, after a look at each definition.",
    ),
    "lock": ("omni_mcp.cli.lock", "lock_command", "Show which definitions are accepted and which wait."),
    "risks": ("omni_mcp.cli.lock", "risks_command", "List the open risks of what was accepted."),
    "pins": ("omni_mcp.cli.pins", "pins", "Keep a project at one version of a tool; list and remove such pins."),
    "pause": ("omni_mcp.cli.pause", "pause", "Refuse new calls of a tool or a server; those under way finish."),
    "resume": ("omni_mcp.cli.pause", "resume", "Take calls of a paused tool or server again."),
    "plugins": ("omni_mcp.cli.plugins", "plugins_command", "List what installed packages could add, and what is on."),
    "import": (
        "omni_mcp.cli.importing",
        "import_servers",
        "Add the servers of your clients: Claude Desktop, Claude Code, Cursor, VS Code, Codex.",
    ),
    "connect": ("omni_mcp.cli.connect", "connect", "Write this gateway into a client's configuration."),
    "disconnect": ("omni_mcp.cli.connect", "disconnect", "Take this gateway out of a client's configuration."),
    "keys": ("omni_mcp.cli.keys", "keys", "Create, list and revoke client tokens."),
}
