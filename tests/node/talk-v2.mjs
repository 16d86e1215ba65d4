// The v2 TypeScript client, in the mode that it is told: "legacy", "auto" or a pinned revision.

import { Client, SSEClientTransport, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { readTask, talk } from "./connect.mjs";

const task = await readTask();
const transports = {
  stdio: () => new StdioClientTransport({ command: task.command, args: task.args, env: task.env }),
  http: () => new StreamableHTTPClientTransport(new URL(task.url), { requestInit: { headers: task.headers } }),
  sse: () => new SSEClientTransport(new URL(task.url), { requestInit: { headers: task.headers } }),
};
const mode = ["legacy", "auto"].includes(task.mode) ? task.mode : { pin: task.mode };
const client = new Client({ name: "talk-v2", version: "1.0.0" }, { versionNegotiation: { mode } });
await client.connect(transports[task.transport]());
await talk(client, task, () => client.getNegotiatedProtocolVersion());
