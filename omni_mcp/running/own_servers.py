"""OwnServers: the servers that run in the gateway's process: run log, search over tools, memory, messages."""

from __future__ import annotations

from collections.abc import Mapping

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.memory import SERVER as MEMORY
from omni_mcp.contracts.ports import Executor
from omni_mcp.contracts.tool import Entry
from omni_mcp.paths import Home
from omni_mcp.running.engines import Engines
from omni_mcp.serving.changes import Changes
from omni_mcp.serving.in_process import InProcess
from omni_mcp.serving.memory.erasing import Forgetting
from omni_mcp.serving.memory.finding import Finding
from omni_mcp.serving.memory.items import ItemMaker
from omni_mcp.serving.memory.news import MemoryNews
from omni_mcp.serving.memory.promoting import Quotes
from omni_mcp.serving.memory.server import MemoryExecutor
from omni_mcp.serving.memory.sweeping import Sweeping
from omni_mcp.serving.memory.taint import Readings
from omni_mcp.serving.messages import Messages
from omni_mcp.serving.messages_server import SERVER as MESSAGES
from omni_mcp.serving.messages_server import MessagesExecutor
from omni_mcp.serving.runbook import Runbook
from omni_mcp.serving.runs.entries import SERVER as RUNS
from omni_mcp.serving.runs.server import RunsExecutor
from omni_mcp.serving.runs.standing import Budgets, Standing
from omni_mcp.serving.search_server import SERVER as TOOLS
from omni_mcp.serving.search_server import SearchableCatalog, SearchExecutor


class OwnServers:
    """Port `Executor` over all of them, and who may see what of theirs."""

    def __init__(
        self, engines: Engines, home: Home, *, named: SearchableCatalog, budgets: Budgets, runbook: Runbook,
        changes: Changes,
    ) -> None:  # fmt: skip
        self.readings = Readings()
        self.forgetting = Forgetting(engines.memory, engines.log, home)
        self.memory_news = MemoryNews(changes)
        self.sweeping = Sweeping(
            engines.memory, engines.log, home, self.forgetting, self.memory_news, gateway_run=engines.gateway_run
        )  # fmt: skip
        self.messages = Messages(engines.log, runbook)
        self._runs = RunsExecutor(
            engines.log, engines.artifacts, Standing(engines.log, budgets, named, engines.policy)
        )  # fmt: skip
        self._memory = MemoryExecutor(
            engines.memory, engines.log, Finding(engines.memory, engines.log, engines.policy, self.readings),
            ItemMaker(engines.masker), Quotes(engines.log, engines.artifacts), self.readings, self.forgetting,
            self.sweeping, self.memory_news,
        )  # fmt: skip
        servers: Mapping[str, Executor] = {
            RUNS: self._runs, TOOLS: SearchExecutor(named, engines.policy), MEMORY: self._memory,
            MESSAGES: MessagesExecutor(self.messages),
        }  # fmt: skip
        self.executor = InProcess(servers)

    async def may_see(self, principal: Principal, entry: Entry, uri: str) -> bool:
        """Whether what a URI of one of these servers names is the principal's; those of others are not judged here."""
        return all([await server.may_see(principal, entry, uri) for server in (self._runs, self._memory)])
