// The real opencode behind the adapter: each scenario with the events that a UI may expect.

import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Pod, closedNetwork, until } from './kit.mjs';
import { Session } from './session.mjs';

closedNetwork();
const GRANTS = '[{scope: ai.anthropic}, {scope: ai.openai}]';
const limit = { timeout: 120_000 };

/** A session of its own, gone when the test is over. */
async function separate(t, how, script) {
  const own = await Pod.start({ grants: GRANTS, script });
  const session = await Session.start(own, how);
  t.after(async () => {
    await session.stop();
    await own.stop();
  });
  return session;
}

let pod, s;

before(async () => {
  pod = await Pod.start({ grants: GRANTS });
  const mcpServers = { echo: { command: 'node', args: [join(import.meta.dirname, 'mcp-echo.mjs')] } };
  s = await Session.start(pod, { config: { project: { mcpServers } } });
  await s.ready();
});
after(async () => {
  await s?.stop();
  await pod?.stop();
});

test('text', limit, async () => {
  const turn = await s.turn('rehearse:text hello');
  assert.equal(turn.one('user.message').text, 'rehearse:text hello');
  turn.assertPieces();
  assert.ok(turn.all('assistant.delta').length > 1);
  assert.equal(turn.end.reason, 'end_turn');
  assert.equal(turn.end.final_text, turn.one('assistant.message').text);
  // The same tokens as in the sidecar's record.
  const record = (await pod.audit()).at(-1);
  assert.deepEqual([turn.end.usage.input, turn.end.usage.output], [record.tokens.input, record.tokens.output]);
  assert.ok(turn.end.usage.cost_usd > 0);
});

test('reasoning', limit, async () => {
  const turn = await s.turn('rehearse:reasoning');
  assert.ok(turn.one('reasoning').text.length > 0);
  turn.assertPieces();
});

test('a tool', limit, async () => {
  const turn = await s.turn('rehearse:shell');
  const use = turn.one('tool.use'), result = turn.one('tool.result');
  assert.deepEqual([use.name, result.tool_use_id, result.is_error, result.exit_code], ['bash', use.tool_use_id, false, 0]);
  assert.match(result.output, /rehearsal-was-here/);
  assert.match(turn.end.final_text, /rehearsal-was-here/);
});

test('a failing tool', limit, async () => {
  const result = (await s.turn('rehearse:fail')).one('tool.result');
  assert.deepEqual([result.is_error, result.exit_code], [true, 3]);
});

test('parallel tools', limit, async () => {
  const turn = await s.turn('rehearse:parallel');
  assert.equal(turn.all('tool.use').length, 2);
  assert.deepEqual(turn.all('tool.result').map((r) => r.tool_use_id).sort(), turn.all('tool.use').map((u) => u.tool_use_id).sort());
});

test('long output comes in pieces, each once', limit, async () => {
  const turn = await s.turn('rehearse:long-output');
  const pieces = turn.all('tool.output').map((o) => o.text).join('');
  assert.ok(turn.one('tool.result').output.length > 10_000);
  assert.ok(pieces.length < 250_000, `${pieces.length}: it is not sent again with every update`);
});

test('an MCP tool', limit, async () => {
  const turn = await s.turn('rehearse:mcp');
  assert.equal(turn.one('tool.use').name, 'mcp__echo__echo');
  assert.match(turn.one('tool.result').output, /^echo: /);
});

test('an unknown tool', limit, async () => {
  const turn = await s.turn('rehearse:unknown-tool');
  assert.equal(turn.one('tool.result').is_error, true);
});

test('the token limit', limit, async () => {
  assert.equal((await s.turn('rehearse:max-tokens')).end.reason, 'max_tokens');
});

test('interrupted in a text', limit, async () => {
  const said = await s.say('rehearse:slow');
  await s.event('a delta', (e) => e.type === 'assistant.delta', said.from);
  assert.equal((await s.post('/interrupt')).status, 202);
  const turn = await s.rest(said);
  assert.equal(turn.end.reason, 'interrupted');
  assert.equal(turn.one('assistant.message').truncated, true);
  assert.deepEqual(turn.all('error'), []);
});

test('interrupted in a tool', limit, async () => {
  const said = await s.say('rehearse:sleep');
  await s.event('a tool', (e) => e.type === 'tool.use', said.from);
  await s.post('/interrupt');
  const turn = await s.rest(said);
  assert.equal(turn.end.reason, 'interrupted');
  assert.equal(turn.one('tool.result').is_error, true);
});

test('an input while it is busy joins the turn, and nothing of it is lost', limit, async () => {
  const said = await s.say('rehearse:slow');
  await s.event('a delta', (e) => e.type === 'assistant.delta', said.from);
  const second = await s.say('rehearse:text now this');
  const turn = await s.rest(said);
  assert.equal(turn.all('user.message').length, 2);
  const joined = turn.events.find((e) => e.type === 'user.message' && e.payload.input_id === second.id);
  const start = turn.events.find((e) => e.type === 'turn.start');
  assert.equal(joined.turn_id, start.turn_id);
  turn.assertPieces();
  assert.ok(turn.all('assistant.message').every((m) => !m.truncated));
});

test('an input in the queue waits for the end', limit, async () => {
  const said = await s.say('rehearse:slow');
  await s.event('a delta', (e) => e.type === 'assistant.delta', said.from);
  const second = await s.say('rehearse:text', { mode: 'queue' });
  const [first, after] = [await s.rest(said), await s.rest(second)];
  assert.equal(first.all('user.message').length, 1);
  assert.equal(after.end.turn, first.end.turn + 1);
});

test('an input that interrupts', limit, async () => {
  const said = await s.say('rehearse:slow');
  await s.event('a delta', (e) => e.type === 'assistant.delta', said.from);
  const second = await s.say('rehearse:text', { mode: 'interrupt' });
  assert.equal((await s.rest(said)).end.reason, 'interrupted');
  assert.equal((await s.rest(second)).end.reason, 'end_turn');
});

test('the same input twice is one', limit, async () => {
  const first = await s.say('rehearse:text', { input_id: 'once' });
  const again = await s.post('/inject', { text: 'rehearse:text', input_id: 'once' });
  assert.deepEqual([again.status, again.body.duplicate], [202, true]);
  await s.rest(first);
  await s.turn('rehearse:text after');
  assert.equal(s.events.filter((e) => e.type === 'user.message' && e.payload.input_id === 'once').length, 1);
});

test('a rate limit, then an answer', limit, async () => {
  const turn = await s.turn('rehearse:429-once');
  const retry = turn.one('retry');
  assert.equal(retry.code, 'rate_limited');
  assert.ok(retry.retry_after_ms > 0 && retry.retry_after_ms <= 3000, String(retry.retry_after_ms));
  assert.equal(turn.end.reason, 'end_turn');
});

test('a rate limit for ever', limit, async () => {
  const turn = await s.turn('rehearse:429');
  assert.ok(turn.all('retry').length >= 3);
  const error = turn.one('error');
  assert.deepEqual([error.code, error.http_status, error.retryable, turn.end.reason], ['rate_limited', 429, true, 'error']);
});

for (const [scene, code, status] of [['403', 'permission_denied', 403], ['404', 'model_unavailable', 404]]) {
  test(`the provider says ${scene}`, limit, async () => {
    const turn = await s.turn(`rehearse:${scene}`);
    const error = turn.one('error');
    assert.deepEqual([error.code, error.http_status, turn.end.reason], [code, status, 'error']);
  });
}

test('a key that the provider refuses is not a login problem of the agent', limit, async () => {
  const error = (await s.turn('rehearse:401')).one('error');
  assert.equal(error.code, 'auth');
});

test('a stream that breaks once is taken up again', limit, async () => {
  const turn = await s.turn('rehearse:cut-once');
  assert.equal(turn.one('retry').code, 'provider_down');
  const whole = new Set(turn.all('assistant.message').map((m) => m.item_id));
  assert.ok(turn.all('assistant.delta').every((d) => whole.has(d.item_id)), 'what was begun is closed');
  assert.equal(turn.end.reason, 'end_turn');
});

test('a withdrawn grant: one request, and the word of the sidecar', limit, async () => {
  pod.grant('[]');
  await until('the new grants', async () => (await fetch(`${pod.url}/v1/messages`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"claude-sonnet-4-5","messages":[]}' })).status === 403);
  const denied = () => pod.lines('audit.jsonl').filter((r) => r.code === 'scope_denied' && r.stream);
  try {
    const said = await s.say('rehearse:text');
    const event = await s.event('an error', (e) => e.type === 'error', said.from);
    const error = event.payload;
    assert.equal((await s.rest(said)).end.reason, 'error');
    assert.deepEqual([error.code, error.http_status], ['permission_denied', 403]);
    assert.match(error.message, /^Blocked by workspace policy/);
    await until('its record', () => denied().length > 0);
    assert.equal(denied().length, 1, 'one request');
    const after = Date.parse(event.timestamp) - Date.parse(denied()[0].ts);
    assert.ok(after < 2000, `told ${after} ms after the refusal`);
  } finally {
    pod.grant(GRANTS);
  }
  await until('the grants again', async () => (await s.turn('rehearse:text')).end.reason === 'end_turn');
});

test('the CLI is killed: what was open is closed, and it goes on with its history', limit, async () => {
  const said = await s.say('rehearse:sleep');
  await s.event('a tool', (e) => e.type === 'tool.use', said.from);
  for (const pid of s.agents()) { try { process.kill(pid, 'SIGKILL'); } catch {} }
  const turn = await s.rest(said);
  assert.equal(turn.end.reason, 'error');
  assert.equal(turn.one('tool.result').is_error, true);
  assert.equal(turn.one('error').code, 'runtime_crashed');
  const start = await s.event('a new start', (e) => e.type === 'session.start', said.from);
  assert.equal(start.payload.resumed, true);
  assert.equal(start.payload.native_session_id, s.events.find((e) => e.type === 'session.start').payload.native_session_id);
  const again = await s.turn('rehearse:text are you there?');
  assert.equal(again.end.reason, 'end_turn');
});

test('the adapter is killed: the stream goes on where it was', limit, async () => {
  const said = await s.say('rehearse:slow');
  await s.event('a delta', (e) => e.type === 'assistant.delta', said.from);
  const waiting = await s.say('rehearse:text', { mode: 'queue' });
  s.child.kill('SIGKILL');
  await s.exited;
  await s.subscribed;
  s.spawn();
  assert.equal((await s.rest(said)).end.reason, 'error');
  assert.equal((await s.rest(waiting)).end.reason, 'end_turn');
  const resumed = s.events.filter((e) => e.type === 'session.start').at(-1).payload.resumed;
  assert.equal(resumed, true);
});

test('the provider is down: it is told that the CLI tries again', limit, async () => {
  pod.children[0].kill('SIGKILL');
  const said = await s.say('rehearse:text anybody?');
  const retry = (await s.event('a retry', (e) => e.type === 'retry', said.from)).payload;
  assert.equal(retry.code, 'provider_down');
  await s.post('/interrupt');
  assert.equal((await s.rest(said)).end.reason, 'interrupted');
});

test('permissions are asked for, given and denied', limit, async (t) => {
  const asking = await separate(t, { args: ['--permissions', 'ask'] });
  await asking.ready();
  for (const [decision, is_error] of [['allow', false], ['deny', true]]) {
    const said = await asking.say(`rehearse:shell ${decision}`);
    const request = (await asking.event('a request', (e) => e.type === 'permission.request', said.from)).payload;
    assert.equal(request.name, 'bash');
    assert.match(request.input.command ?? JSON.stringify(request), /^echo/);
    assert.equal((await asking.post(`/permission/${request.request_id}`, { decision: 'perhaps' })).status, 400);
    assert.equal((await asking.post(`/permission/${request.request_id}`, { decision })).status, 202);
    const turn = await asking.rest(said);
    assert.deepEqual(turn.one('permission.resolved'), { request_id: request.request_id, decision, by: 'user' });
    assert.equal(turn.one('tool.result').is_error, is_error);
    assert.equal((await asking.post(`/permission/${request.request_id}`, { decision })).status, 404);
  }
});

test('too many steps end the turn, and the way there is told', limit, async (t) => {
  const limited = await separate(t, { config: { session: { maxSteps: 4 } } });
  await limited.ready();
  // A script of the provider that calls a tool again and again.
  const turn = await limited.turn('rehearse:loop');
  assert.equal(turn.end.reason, 'max_steps');
  assert.deepEqual(turn.all('warning').map((w) => w.message), [1, 2, 3, 4].map((n) => `step ${n} of 4 of this turn`));
});

test('subagents are off unless they are wanted, and then theirs is told apart', limit, async (t) => {
  const task = { name: 'task', input: { description: 'look', prompt: 'rehearse:shell', subagent_type: 'general' } };
  const script = { steps: [{ tools: [task] }, { say: 'done' }] };
  const off = await separate(t, {}, script);
  await off.ready();
  const refused = await off.turn('go');
  assert.deepEqual([refused.one('tool.use').name, refused.one('tool.result').is_error], ['task', true]);
  const on = await separate(t, { config: { session: { subagents: true } } }, script);
  await on.ready();
  const turn = await on.turn('go');
  const use = turn.all('tool.use').find((u) => u.name === 'task');
  const inner = turn.all('tool.use').find((u) => u.name === 'bash');
  assert.equal(inner.parent_tool_use_id, use.tool_use_id);
  assert.equal(turn.all('tool.result').length, 2);
  assert.equal(turn.end.final_text, 'done');
});

test('a model that there is not', limit, async (t) => {
  const odd = await separate(t, { args: ['--model', 'anthropic/no-such-model'] });
  await odd.ready();
  const turn = await odd.turn('rehearse:text');
  assert.deepEqual([turn.one('error').code, turn.end.reason], ['model_unavailable', 'error']);
});

test('one shot: one turn, and the end says how it went', limit, async (t) => {
  const once = await separate(t, { args: ['--prompt', 'rehearse:shell'], env: { SESSION_MODE: 'oneshot' } });
  const end = await once.event('the end', (e) => e.type === 'session.end');
  assert.equal(end.payload.reason, 'completed');
  assert.match(end.payload.resume_token, /^opencode:ses_/);
  assert.equal(once.events.find((e) => e.type === 'user.message').payload.source, 'initial');
  assert.equal(await once.exited, 0);
});
