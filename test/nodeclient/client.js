// Calls the service through Microsoft's own client and prints what it understood, as JSON.
// Usage: node client.js URL TOKEN POOL-NAME
"use strict";

const azdev = require("azure-devops-node-api");

async function main() {
  const [url, token, poolName] = process.argv.slice(2);
  const web = new azdev.WebApi(url, azdev.getPersonalAccessTokenHandler(token));
  const out = {};

  const connection = await web.connect();
  out.user = connection.authenticatedUser.providerDisplayName;

  const api = await web.getTaskAgentApi();
  const pools = await api.getAgentPools(poolName);
  out.pools = pools.map((p) => ({ id: p.id, name: p.name }));
  const pool = pools[0].id;
  out.poolById = (await api.getAgentPool(pool)).name;

  const added = await api.addAgent(
    { name: "node-agent", version: "4.260.0", maxParallelism: 1, systemCapabilities: { "Agent.OS": "Linux" } },
    pool
  );
  out.added = { id: added.id, name: added.name, enabled: added.enabled, clientId: added.authorization.clientId };
  try {
    await api.addAgent({ name: "node-agent", version: "4.260.0" }, pool);
    out.addedTwice = "accepted";
  } catch (err) {
    out.addedTwice = { status: err.statusCode, message: err.message };
  }

  const disabled = await api.updateAgent({ id: added.id, enabled: false }, pool, added.id);
  out.disabled = disabled.enabled;
  const replaced = await api.replaceAgent(
    { id: added.id, name: "node-agent", version: "4.261.0", systemCapabilities: { "Agent.OS": "Linux", npm: "yes" } },
    pool,
    added.id
  );
  out.replaced = replaced.version;

  const agents = await api.getAgents(pool, undefined, true, true);
  out.agents = agents.map((a) => ({
    name: a.name,
    status: a.status,
    os: a.systemCapabilities && a.systemCapabilities["Agent.OS"],
    assigned: a.assignedRequest && a.assignedRequest.requestId,
  }));
  out.agentsByName = (await api.getAgents(pool, "node-agent")).map((a) => a.name);
  out.agent = (await api.getAgent(pool, added.id, true)).systemCapabilities.npm;

  const brief = (r) => ({ id: r.requestId, result: r.result, queued: r.queueTime instanceof Date, demands: r.demands });
  // The client's method for agents, without any, is the query that scalers use.
  out.unfinished = (await api.getAgentRequestsForAgents(pool, undefined, 0)).map(brief);
  out.top = (await api.getAgentRequests(pool, 3)).map(brief);
  out.topRest = (await api.getAgentRequests(pool, 200, String(Math.min(...out.top.map((r) => r.id))))).map(brief);
  out.request = brief(await api.getAgentRequest(pool, out.unfinished[0].id, true));

  const usage = await api.getResourceUsage("Private", false, true);
  out.parallel = usage.resourceLimit.totalCount;
  out.packages = (await api.getPackages("agent", "linux-x64", 1)).map((p) => ({ version: p.version, hash: p.hashValue }));

  await api.deleteAgent(pool, added.id);
  out.left = (await api.getAgents(pool)).map((a) => a.name);

  try {
    const stranger = new azdev.WebApi(url, azdev.getPersonalAccessTokenHandler("wrong"));
    await (await stranger.getTaskAgentApi()).getAgentPools();
    out.stranger = "let in";
  } catch (err) {
    out.stranger = "kept out";
  }
  process.stdout.write(JSON.stringify(out));
}

main().catch((err) => {
  process.stderr.write((err && err.stack) || String(err));
  process.exit(1);
});
