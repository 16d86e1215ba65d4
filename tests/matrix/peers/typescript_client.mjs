// The TypeScript SDKs' clients under remote control: one JSON object a line each way.
//
// In:  {"id", "do": "connect" | "request" | "call" | "begin" | "cancel" | "subscribe" | "unsubscribe" | "answers", ...}
// Out: {"id", "ok"} or {"id", "error": {"code", "message"}}; {"note"} for what the server says; {"asked"} for questions.

import { createInterface } from "node:readline";

const [kind, url, token, mode] = process.argv.slice(2);
const headers = { authorization: `Bearer ${token}` };
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const capabilities = { sampling: {}, roots: {}, elicitation: {} };
const answers = {};
const running = new Map();
const answer = async (request) => {
  say({ asked: request.method });
  return answers[request.method];
};
const any = { "~standard": { version: 1, vendor: "matrix", validate: (value) => ({ value }) } };
const notes = ["notifications/message", "notifications/tools/list_changed", "notifications/resources/updated"];

async function first() {
  const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
  const t = await import("@modelcontextprotocol/sdk/types.js");
  const client = new Client({ name: "matrix-typescript", version: "1.0.0" }, { capabilities });
  client.setRequestHandler(t.ElicitRequestSchema, answer);
  client.setRequestHandler(t.CreateMessageRequestSchema, answer);
  client.setRequestHandler(t.ListRootsRequestSchema, answer);
  for (const schema of [t.LoggingMessageNotificationSchema, t.ToolListChangedNotificationSchema, t.ResourceUpdatedNotificationSchema]) {
    client.setNotificationHandler(schema, (note) => say({ note }));
  }
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  const send = (request, options) => client.request(request, t.ResultSchema.passthrough(), options);
  return { client, send, version: () => client.getServerVersion() && "2025-11-25" };
}

async function second() {
  const { Client, StreamableHTTPClientTransport } = await import("@modelcontextprotocol/client");
  const versionNegotiation = { mode: ["legacy", "auto"].includes(mode) ? mode : { pin: mode } };
  const client = new Client({ name: "matrix-typescript", version: "2.0.0" }, { capabilities, versionNegotiation });
  for (const method of ["elicitation/create", "sampling/createMessage", "roots/list"]) client.setRequestHandler(method, answer);
  for (const method of notes) client.setNotificationHandler(method, (note) => say({ note }));
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  const typed = {
    "tools/call": (params, options) => client.callTool(params, options),
    "prompts/get": (params, options) => client.getPrompt(params, options),
    "resources/read": (params, options) => client.readResource(params, options),
  };
  const send = ({ method, params }, options) =>
    typed[method] ? typed[method](params, options) : client.request({ method, params }, any, options);
  return { client, send, version: () => client.getNegotiatedProtocolVersion() };
}

const { client, send, version } = await (kind === "v1" ? first() : second());
const modern = version() === "2026-07-28";
if (!modern) await send({ method: "logging/setLevel", params: { level: "debug" } });
say({ ready: version() });

async function call({ params, token: wanted }, signal) {
  const onprogress = wanted
    ? (told) => say({ note: { method: "notifications/progress", params: { ...told, progressToken: wanted } } })
    : undefined;
  return await send({ method: "tools/call", params }, { onprogress, signal });
}

let listening = null;
const todo = {
  answers: async ({ given }) => Object.assign(answers, given),
  request: async ({ method, params }) => await send({ method, params }),
  call: async (command) => await call(command),
  begin: async (command) => {
    const stop = new AbortController();
    running.set(command.id, stop);
    call(command, stop.signal).catch(() => {});
    return {};
  },
  cancel: async ({ begun }) => running.get(begun).abort("cancelled by the test"),
  subscribe: async ({ uri }) => {
    if (!modern) return await send({ method: "resources/subscribe", params: { uri } });
    listening = await client.listen({ toolsListChanged: true, resourceSubscriptions: [uri] });
    return {};
  },
  unsubscribe: async ({ uri }) => {
    if (!modern) return await send({ method: "resources/unsubscribe", params: { uri } });
    await listening?.close();
    return {};
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  todo[command.do](command)
    .then((ok) => say({ id: command.id, ok: ok ?? {} }))
    .catch((error) => say({ id: command.id, error: { code: error.code ?? 0, message: String(error.message ?? error) } }));
}
await client.close();
