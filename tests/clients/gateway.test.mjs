// What Claude Code itself says that it expects of a gateway, line by line, with the real CLI:
// what passes, what is answered here, and how refusals are taken.

import assert from 'node:assert/strict';
import { mkdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { Pod, closedNetwork, freePort, home, modules, program } from './kit.mjs';

closedNetwork();
const CLAUDE = join(modules, '.bin/claude');
const POLICY = /Blocked by workspace policy \(not a login problem\)/;
const limit = { timeout: 90_000 };

let pod;
before(async () => (pod = await Pod.start()));
after(() => pod.stop());

/** One task of the CLI, and the records that it left. */
async function claude(pod, { prompt = 'rehearse:text', env = {}, args = [], url = `${pod.url}/anthropic` } = {}) {
  const dir = home();
  mkdirSync(join(dir, '.claude'), { recursive: true });
  const from = pod.lines('audit.jsonl').length;
  const run = await program(CLAUDE, ['-p', prompt, '--model', 'claude-sonnet-5-5', '--output-format', 'json', ...args], {
    home: dir,
    cwd: join(dir, 'work'),
    timeout: 60_000,
    env: { ANTHROPIC_BASE_URL: url, ANTHROPIC_AUTH_TOKEN: 'dummy', CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1', IS_SANDBOX: '1', ...env },
  });
  rmSync(dir, { recursive: true, force: true });
  await new Promise((r) => setTimeout(r, 300));
  const records = pod.lines('audit.jsonl').slice(from);
  return { ...run, records, calls: records.filter((r) => r.endpoint === 'messages') };
}

test('a turn passes, whatever fields, headers and betas this version sends', limit, async () => {
  const run = await claude(pod, { prompt: 'Look around with your shell.', args: ['--dangerously-skip-permissions'] });
  assert.equal(run.code, 0, run.out);
  assert.match(run.out, /rehearsal-was-here/);
  assert.ok(run.calls.length >= 2 && run.calls.every((r) => r.status === 200 && r.decision === 'allow'));
  assert.ok(run.records.every((r) => r.decision === 'allow'), 'its probes are no refusals');
});

test('a model that is not granted: one request, the message as it is, no login', limit, async () => {
  const narrow = await Pod.start({ grants: '[{scope: "ai.anthropic:another"}]' });
  try {
    const run = await claude(narrow);
    assert.match(run.out, POLICY);
    assert.doesNotMatch(run.out, /Failed to authenticate|\/login/);
    assert.deepEqual(run.calls.map((r) => [r.code, r.status]), [['scope_denied', 400]]);
    const fallback = await claude(narrow, { args: ['--fallback-model', 'claude-haiku-5-5'] });
    assert.equal(fallback.calls.length, 1, 'no fallback model is tried');
  } finally {
    await narrow.stop();
  }
});

test('a budget that is used up: one request, and the message', limit, async () => {
  const poor = await Pod.start({ grants: '[{scope: ai.anthropic, limits: {tokensPerDay: 1}}]' });
  try {
    await claude(poor);
    const run = await claude(poor);
    assert.match(run.out, POLICY);
    assert.deepEqual(run.calls.map((r) => [r.code, r.status]), [['budget_exhausted', 400]]);
  } finally {
    await poor.stop();
  }
});

test('a bearer that is wrong: said at once, not after three minutes of retries', limit, async () => {
  const token = 'a-token-of-the-session-0123456789abcdef';
  const guarded = await Pod.start({ token });
  try {
    const right = await claude(guarded, { env: { ANTHROPIC_AUTH_TOKEN: token } });
    assert.equal(right.code, 0, right.out);
    const wrong = await claude(guarded);
    assert.ok(wrong.ms < 30_000 && wrong.code !== 0, `${wrong.ms} ms: ${wrong.out}`);
    assert.equal(wrong.records.filter((r) => r.code === 'unauthorized' && r.bytes_out > 0).length, wrong.records.length);
  } finally {
    await guarded.stop();
  }
});

test('telemetry and optional calls are answered such that nothing retries or complains', limit, async () => {
  const otlp = { CLAUDE_CODE_ENABLE_TELEMETRY: '1', OTEL_METRICS_EXPORTER: 'otlp', OTEL_LOGS_EXPORTER: 'otlp', OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json', OTEL_EXPORTER_OTLP_ENDPOINT: `${pod.url}/anthropic`, OTEL_METRIC_EXPORT_INTERVAL: '500', OTEL_LOGS_EXPORT_INTERVAL: '500' };
  const run = await claude(pod, { env: otlp });
  assert.equal(run.code, 0, run.out);
  assert.ok(run.records.some((r) => r.endpoint === 'telemetry'), JSON.stringify(run.records.map((r) => r.endpoint)));
  assert.ok(run.records.every((r) => r.decision === 'allow'), JSON.stringify(run.records));
  for (const [path, status] of [['/managed/settings', 404], ['/anthropic/managed/settings', 404], ['/anthropic/api/oauth/usage', 404]]) {
    const reply = await fetch(`${pod.url}${path}`);
    assert.deepEqual([reply.status, reply.headers.get('x-should-retry')], [status, 'false'], path);
  }
  const models = await fetch(`${pod.url}/anthropic/v1/models`, { headers: { 'anthropic-version': '2023-06-01' } });
  assert.equal(models.status, 200);
});

/** A provider of our own behind another sidecar: it answers as `reply` says, and keeps what came. */
async function provider(reply) {
  const seen = [];
  const server = createServer((request, response) => {
    const pieces = [];
    request.on('data', (d) => pieces.push(d));
    request.on('end', () => {
      const body = Buffer.concat(pieces).toString();
      seen.push({ headers: request.headers, body });
      const { status = 200, headers = {}, text } = reply(body);
      response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(text);
    });
  }).listen(await freePort(), '127.0.0.1');
  await new Promise((ready) => server.once('listening', ready));
  const pod = await Pod.start({ provider: `http://127.0.0.1:${server.address().port}` });
  return { pod, seen, stop: async () => (await pod.stop(), server.close()) };
}

const answer = { model: 'claude-sonnet-5-5', type: 'message', role: 'assistant', content: [{ type: 'text', text: 'hi' }], stop_reason: 'end_turn', safeguard_results: [{ verdict: 'fine' }], usage: { input_tokens: 3, output_tokens: 5 } };

test('fields that nobody here knows pass in both directions, and the quota of the workspace does not', limit, async () => {
  const upstream = await provider(() => ({ text: JSON.stringify(answer), headers: { 'request-id': 'req_of_the_workspace', 'anthropic-ratelimit-requests-remaining': '7', 'anthropic-organization-id': 'org' } }));
  try {
    const body = JSON.stringify({ model: 'claude-sonnet-5-5', max_tokens: 1, messages: [], safeguards: { checks: ['x'] }, tags: { team: 'a' }, a_field_of_tomorrow: [1] });
    const headers = { 'content-type': 'application/json', 'anthropic-version': '2023-06-01', 'anthropic-beta': 'a-beta-of-tomorrow-2027-01-01', 'x-claude-code-session-id': 's', 'x-claude-code-anything-new': '1' };
    const reply = await fetch(`${upstream.pod.url}/anthropic/v1/messages?beta=true`, { method: 'POST', headers, body });
    assert.deepEqual(await reply.json(), answer);
    const [{ body: sent, headers: got }] = upstream.seen;
    assert.equal(sent, body, 'byte for byte');
    assert.deepEqual([got['anthropic-beta'], got['x-claude-code-anything-new']], [headers['anthropic-beta'], '1']);
    assert.match(reply.headers.get('request-id'), /^req_[a-p]+$/, 'ours, which leads to the audit');
    for (const name of ['anthropic-ratelimit-requests-remaining', 'anthropic-organization-id']) assert.equal(reply.headers.get(name), null, name);
  } finally {
    await upstream.stop();
  }
});

test('errors that the CLI recovers from reach it as the provider wrote them', limit, async () => {
  for (const [status, message] of [
    [400, 'messages.1.content.0: Invalid `signature` in `thinking` block'],
    [400, 'prompt is too long: 210000 tokens > 200000 maximum'],
    [400, 'input length and `max_tokens` exceed context limit: 190000 + 32000 > 200000'],
    [413, 'Request exceeds the maximum size'],
    [529, 'Overloaded'],
  ]) {
    const error = JSON.stringify({ type: 'error', error: { type: status === 529 ? 'overloaded_error' : 'invalid_request_error', message }, request_id: 'req_1' });
    const upstream = await provider(() => ({ status, text: error }));
    try {
      const reply = await fetch(`${upstream.pod.url}/anthropic/v1/messages`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"claude-sonnet-5-5","messages":[]}' });
      assert.deepEqual([reply.status, await reply.text()], [status, error]);
    } finally {
      await upstream.stop();
    }
  }
});
