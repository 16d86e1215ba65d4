// The v1 TypeScript SDK as a client: what most desktop clients are built on.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { readTask, talk } from "./connect.mjs";

const task = await readTask();
const transports = {
  stdio: () => new StdioClientTransport({ command: task.command, args: task.args, env: task.env }),
  http: () => new StreamableHTTPClientTransport(new URL(task.url), { requestInit: { headers: task.headers } }),
  sse: () =>
    new SSEClientTransport(new URL(task.url), {
      requestInit: { headers: task.headers },
      eventSourceInit: {
        fetch: (url, init) => fetch(url, { ...init, headers: { ...init.headers, ...task.headers } }),
      },
    }),
};

let negotiated = "";
const transport = transports[task.transport]();
transport.setProtocolVersion = ((before) => (version) => {
  negotiated = version;
  before?.call(transport, version);
})(transport.setProtocolVersion);

const client = new Client({ name: "talk-v1", version: "1.0.0" });
await client.connect(transport);
await talk(client, task, () => negotiated);
