// What both TypeScript clients are told on stdin, and what they print: one JSON object each way.

import { text } from "node:stream/consumers";

/** Read the task: { transport, command, args, env, url, headers, mode, allowed, refused }. */
export async function readTask() {
  return JSON.parse(await text(process.stdin));
}

/** List, call what is allowed and what is refused, read a resource, and print what came. */
export async function talk(client, task, version) {
  const tools = await client.listTools();
  const allowed = await client.callTool(task.allowed);
  const refused = await client.callTool(task.refused);
  const resources = await client.listResources();
  const read = resources.resources.length
    ? await client.readResource({ uri: resources.resources[0].uri })
    : null;
  const negotiated = version(); // a closed client has forgotten it
  await client.close();
  const names = tools.tools.map((tool) => tool.name);
  process.stdout.write(
    JSON.stringify({ version: negotiated, tools: names, allowed, refused, read, resources: resources.resources }),
  );
}
