"""Which commands there are, and where; the help stands here too, so that `--help` imports none of them."""

from __future__ import annotations

# name -> (module, attribute, one line of help).
COMMANDS: dict[str, tuple[str, str, str]] = {
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
    "runs": ("omni_mcp.cli.runs", "runs", "List, show, follow and search recorded runs."),
    "audit": ("omni_mcp.cli.audit", "audit", "Verify and export the run log."),
    "erase": ("omni_mcp.cli.audit", "erase", "Erase the texts of a run; the chain still verifies."),
    "retention": ("omni_mcp.cli.audit", "retention", "Erase runs that are older than the limit."),
    "db": ("omni_mcp.cli.audit", "db", "Maintain the database: rebuild projections."),
    "tools": ("omni_mcp.cli.tools", "tools", "List, show and lint tools."),
    "contracts": ("omni_mcp.cli.contracts", "contracts", "Print the JSON Schemas of what is recorded and read."),
    "errors": ("omni_mcp.cli.contracts", "errors", "Print the failure catalogue."),
    "keys": ("omni_mcp.cli.keys", "keys", "Create, list and revoke client tokens."),
}
