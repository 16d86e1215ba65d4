// A server made with the v1 TypeScript SDK that has every feature of the handshake era, over stdio.

import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import * as t from "@modelcontextprotocol/sdk/types.js";

const WATCHED = "test://watched";
const names = ["echo", "fail", "refuse", "progress", "log", "hang", "cancelled", "touch", "change", "ask", "sample", "roots"];
const form = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
const cancelled = [];
const subscribed = new Set();
let extra = 0;

const server = new Server(
  { name: "matrix-typescript", version: "1.0.0" },
  {
    capabilities: {
      tools: { listChanged: true },
      resources: { subscribe: true, listChanged: true },
      prompts: {},
      logging: {},
      completions: {},
    },
  },
);
const tool = (name) => ({ name, description: `Tool ${name}`, inputSchema: { type: "object" } });
const say = (text, more = {}) => ({ content: [{ type: "text", text }], ...more });

const questions = {
  ask: async (asking) => {
    const said = await asking({ method: "elicitation/create", params: { message: "Who are you?", requestedSchema: form } }, t.ElicitResultSchema);
    return `${said.action} ${said.content?.name ?? ""}`.trim();
  },
  sample: async (asking) => {
    const messages = [{ role: "user", content: { type: "text", text: "hi" } }];
    const said = await asking({ method: "sampling/createMessage", params: { messages, maxTokens: 9 } }, t.CreateMessageResultSchema);
    return said.content.text;
  },
  roots: async (asking) => {
    const said = await asking({ method: "roots/list" }, t.ListRootsResultSchema);
    return said.roots.map((root) => root.uri).join(" ");
  },
};

async function call({ params }, { signal, sendNotification, sendRequest }) {
  const { name, arguments: given = {}, _meta: meta = {} } = params;
  const tellProgress = (progress, total) =>
    sendNotification({ method: "notifications/progress", params: { progressToken: meta.progressToken, progress, total } });
  if (questions[name]) {
    try {
      return say(await questions[name](sendRequest));
    } catch (error) {
      return say(`error ${error.code}`);
    }
  }
  if (name === "refuse") throw new t.McpError(-32050, "no such luck", { why: "test" });
  if (name === "progress") for (const step of [1, 2, 3]) await tellProgress(step, 3);
  if (name === "log") {
    await sendNotification({ method: "notifications/message", params: { level: "info", logger: "matrix", data: { said: "hello" } } });
  }
  if (name === "hang") {
    signal.addEventListener("abort", () => cancelled.push(given.mark));
    await tellProgress(1);
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
  }
  if (name === "touch" && subscribed.has(WATCHED)) await server.sendResourceUpdated({ uri: WATCHED });
  if (name === "change") {
    extra = given.number;
    await server.sendToolListChanged();
  }
  if (name === "cancelled") return say(cancelled.join(","));
  return say(String(given.text ?? name), name === "fail" ? { isError: true } : {});
}

server.setRequestHandler(t.ListToolsRequestSchema, async () => ({
  tools: [...names, ...(extra ? [`extra${extra}`] : [])].map(tool),
}));
server.setRequestHandler(t.CallToolRequestSchema, call);
server.setRequestHandler(t.ListResourcesRequestSchema, async () => ({
  resources: ["test://static", WATCHED].map((uri) => ({ uri, name: uri.slice(7) })),
}));
server.setRequestHandler(t.ListResourceTemplatesRequestSchema, async () => ({
  resourceTemplates: [{ uriTemplate: "test://item/{id}", name: "item" }],
}));
server.setRequestHandler(t.ReadResourceRequestSchema, async ({ params: { uri } }) => ({
  contents: [{ uri, mimeType: "text/plain", text: `content of ${uri}` }],
}));
server.setRequestHandler(t.SubscribeRequestSchema, async ({ params }) => (subscribed.add(params.uri), {}));
server.setRequestHandler(t.UnsubscribeRequestSchema, async ({ params }) => (subscribed.delete(params.uri), {}));
server.setRequestHandler(t.ListPromptsRequestSchema, async () => ({ prompts: [{ name: "greet", arguments: [{ name: "word" }] }] }));
server.setRequestHandler(t.GetPromptRequestSchema, async ({ params }) => ({
  messages: [{ role: "user", content: { type: "text", text: `hello ${params.arguments?.word ?? "world"}` } }],
}));
server.setRequestHandler(t.CompleteRequestSchema, async ({ params: { argument } }) => ({
  completion: { values: [`${argument.value}one`, `${argument.value}two`], total: 2, hasMore: false },
}));
await server.connect(new StdioServerTransport());
