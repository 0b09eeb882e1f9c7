// The real CLIs behind the adapter: each scenario with the events that a UI may expect, for
// each runtime. Where one is different, the table says how; docs/runtimes.md explains it.

import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Pod, bin, chosen, closedNetwork, until } from './kit.mjs';
import { Session } from './session.mjs';

closedNetwork();
const GRANTS = '[{scope: ai.anthropic}, {scope: ai.openai}, {scope: ai.google}]';
const limit = { timeout: 180_000 };
const echo = { echo: { command: 'node', args: [join(import.meta.dirname, 'mcp-echo.mjs')] } };

/**
 * What differs. `joins`: whether an input reaches the running turn while text streams, and while
 * a tool runs; else it begins the next. `retries`: whether the CLI tries again after a rate limit,
 * and whether it says so. `maxTokens`: some go on by themselves. `unknownTool`: whether the call of a tool that there is not is told.
 */
const RUNTIMES = {
  opencode: { provider: 'anthropic', joins: { text: true, tool: true }, retries: 'told', cut: 'retry', unknownTool: true, maxTokens: 'max_tokens', cost: true, task: { name: 'task', input: { description: 'look', prompt: 'rehearse:shell', subagent_type: 'general' } }, output: 'whole' },
  claude: { provider: 'anthropic', searchesTools: true, joins: { text: false, tool: true }, retries: 'told', cut: 'retry', unknownTool: true, maxTokens: 'end_turn', cost: true, task: { name: 'Agent', input: { description: 'look', prompt: 'rehearse:shell', subagent_type: 'general-purpose' } }, output: 'preview' },
  codex: { provider: 'openai', joins: { text: false, tool: true }, retries: 'none', cut: 'error', unknownTool: false, maxTokens: 'error', cost: false, mcpScript: { name: 'echo', namespace: 'mcp__echo', input: { text: 'rehearsal' } }, output: 'whole' },
  gemini: { provider: 'google', joins: { text: false, tool: false }, retries: 'told', cut: 'error', unknownTool: false, maxTokens: 'end_turn', cost: false, output: 'whole' },
  pi: { provider: 'anthropic', joins: { text: true, tool: true }, retries: 'told', cut: 'retry', unknownTool: true, maxTokens: 'max_tokens', cost: true, noMcp: true, noPermissions: true, output: 'whole' },
};

/** A session of its own, gone when the test is over. */
async function separate(t, runtime, how, script) {
  const own = await Pod.start({ grants: GRANTS, script });
  const session = await Session.start(own, { runtime, ...how });
  t.after(() => session.stop().finally(() => own.stop()));
  return session;
}

const names = chosen(Object.keys(RUNTIMES));
for (const runtime of names) {
  const is = RUNTIMES[runtime];
  describe(runtime, () => {
    let pod, s;

    before(async () => {
      pod = await Pod.start({ grants: GRANTS });
      s = await Session.start(pod, { runtime, config: { project: { mcpServers: echo } } });
      await s.ready();
    });
    after(() => s?.stop().finally(() => pod.stop()));

    const busy = async (scene, until) => {
      const said = await s.say(`rehearse:${scene}`);
      await s.event(until, (e) => e.type === until, said.from);
      return said;
    };

    test('it says what it is', limit, async () => {
      const start = (await s.event('session.start', (e) => e.type === 'session.start')).payload;
      assert.equal(start.runtime, runtime);
      assert.match(start.runtime_version, /^\d+\.\d+\.\d+/);
      assert.match(start.model, new RegExp(`^${is.provider}/`));
      const warned = s.events.filter((e) => e.type === 'warning').map((e) => e.payload.message);
      if (is.noMcp) assert.match(warned.join(), /mcpServers/);
      else assert.deepEqual(warned, []);
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
      assert.equal(turn.end.usage.cost_usd > 0, is.cost);
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
      assert.equal(use.input.command, 'echo rehearsal-was-here');
      assert.equal(result.output.trim(), 'rehearsal-was-here');
      assert.match(turn.end.final_text, /rehearsal-was-here/);
      const records = (await pod.audit()).slice(-2);
      assert.equal(turn.end.usage.output, records[0].tokens.output + records[1].tokens.output, 'the tokens of both requests');
    });

    test('a failing tool', limit, async () => {
      const result = (await s.turn('rehearse:fail')).one('tool.result');
      assert.deepEqual([result.is_error, result.exit_code], [true, 3]);
      assert.match(result.output, /out\nerr|err\nout/);
    });

    test('parallel tools', limit, async () => {
      const turn = await s.turn('rehearse:parallel');
      assert.equal(turn.all('tool.use').length, 2);
      assert.deepEqual(turn.all('tool.result').map((r) => r.tool_use_id).sort(), turn.all('tool.use').map((u) => u.tool_use_id).sort());
      assert.deepEqual(turn.all('tool.result').map((r) => r.output.trim()).sort(), ['one', 'two']);
    });

    test('long output', limit, async () => {
      const turn = await s.turn('rehearse:long-output');
      const pieces = turn.all('tool.output').map((o) => o.text).join('');
      const { output } = turn.one('tool.result');
      assert.ok(is.output === 'whole' ? output.length > 10_000 : output.length > 1000, `${output.length}`);
      assert.ok(pieces.length < 250_000, `${pieces.length}: it is not sent again with every update`);
    });

    test('an image reaches the provider', limit, async () => {
      await s.turn('rehearse:text without');
      const plain = (await pod.audit()).at(-1).bytes_in;
      const data = readFileSync(join(import.meta.dirname, '../../docs/console.png')).toString('base64');
      const turn = await s.turn('rehearse:text with', { attachments: [{ type: 'image', media_type: 'image/png', data }] });
      assert.deepEqual([turn.end.reason, turn.one('user.message').attachments], ['end_turn', 1]);
      const grown = (await pod.audit()).at(-1).bytes_in - plain;
      assert.ok(grown > 20_000, `${grown} bytes more`);
    });

    test('an MCP tool', { ...limit, skip: is.noMcp && 'it has no tool servers; see its warning' }, async (t) => {
      let session = s;
      if (is.mcpScript) {
        session = await separate(t, runtime, { config: { project: { mcpServers: echo } } }, { steps: [{ tools: [is.mcpScript] }, { say: 'done' }] });
        await session.ready();
      }
      const turn = await session.turn(is.mcpScript ? 'go' : 'rehearse:mcp');
      const uses = turn.all('tool.use'), results = turn.all('tool.result');
      assert.deepEqual(uses.map((u) => u.name), is.searchesTools ? ['ToolSearch', 'mcp__echo__echo'] : ['mcp__echo__echo']);
      if (is.searchesTools) assert.equal(results[0].output, 'mcp__echo__echo', 'what was found is told');
      assert.match(results.at(-1).output, /^echo: /);
    });

    test('an unknown tool', limit, async () => {
      const turn = await s.turn('rehearse:unknown-tool');
      assert.deepEqual(turn.all('tool.result').map((r) => r.is_error), is.unknownTool ? [true] : []);
      assert.equal(turn.end.reason, 'end_turn');
    });

    test('the token limit', limit, async () => {
      assert.equal((await s.turn('rehearse:max-tokens')).end.reason, is.maxTokens);
    });

    test('interrupted in a text', limit, async () => {
      const said = await busy('slow', 'assistant.delta');
      assert.equal((await s.post('/interrupt')).status, 202);
      const turn = await s.rest(said);
      assert.equal(turn.end.reason, 'interrupted');
      assert.equal(turn.one('assistant.message').truncated, true);
      assert.equal(turn.end.final_text, turn.one('assistant.message').text);
      assert.deepEqual(turn.all('error'), []);
    });

    test('interrupted in a tool', limit, async () => {
      const said = await busy('sleep', 'tool.use');
      const sleeping = () => s.agents().some((pid) => { try { return readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith('sleep\0'); } catch { return false; } });
      await until('the command', sleeping);
      await s.post('/interrupt');
      const turn = await s.rest(said);
      await until('the end of the command', () => !sleeping());
      assert.equal(turn.end.reason, 'interrupted');
      assert.equal(turn.one('tool.result').is_error, true);
      assert.deepEqual(turn.all('error'), []);
      assert.equal((await s.turn('rehearse:text and now?')).end.reason, 'end_turn');
    });

    for (const [during, scene, until] of [['text', 'slow', 'assistant.delta'], ['tool', 'nap', 'tool.use']]) {
      test(`an input during a ${during}: nothing of either is lost`, limit, async () => {
        const said = await busy(scene, until);
        const second = await s.say('rehearse:text now this');
        const turn = await s.rest(said);
        turn.assertPieces();
        assert.ok(turn.all('assistant.message').every((m) => !m.truncated));
        if (is.joins[during]) {
          const joined = turn.events.find((e) => e.type === 'user.message' && e.payload.input_id === second.id);
          assert.equal(joined?.turn_id, turn.events.find((e) => e.type === 'turn.start').turn_id);
        } else {
          assert.equal(turn.all('user.message').length, 1);
          const next = await s.rest(second);
          assert.deepEqual([next.end.turn, next.end.reason], [turn.end.turn + 1, 'end_turn']);
        }
      });
    }

    test('an input that was to join a turn which is interrupted is not lost', limit, async () => {
      const said = await busy('slow', 'assistant.delta');
      const second = await s.say('rehearse:text second');
      await s.post('/interrupt');
      assert.equal((await s.rest(said)).end.reason, 'interrupted');
      await s.event('the second', (e) => e.type === 'user.message' && e.payload.input_id === second.id, said.from);
      assert.equal((await s.turn('rehearse:text after', { mode: 'queue' })).end.reason, 'end_turn');
      assert.equal(s.events.filter((e) => e.type === 'user.message' && e.payload.input_id === second.id).length, 1);
    });

    test('an input in the queue waits for the end', limit, async () => {
      const said = await busy('slow', 'assistant.delta');
      const second = await s.say('rehearse:text', { mode: 'queue' });
      const [first, after] = [await s.rest(said), await s.rest(second)];
      assert.equal(first.all('user.message').length, 1);
      assert.equal(after.end.turn, first.end.turn + 1);
    });

    test('an input that interrupts', limit, async () => {
      const said = await busy('slow', 'assistant.delta');
      const second = await s.say('rehearse:text', { mode: 'interrupt' });
      assert.equal((await s.rest(said)).end.reason, 'interrupted');
      assert.equal((await s.rest(second)).end.reason, 'end_turn');
    });

    test('steering where it cannot be: said, and queued', { ...limit, skip: runtime !== 'gemini' && 'it can' }, async () => {
      const said = await busy('slow', 'assistant.delta');
      const second = await s.say('rehearse:text', { mode: 'steer' });
      const warning = await s.event('a warning', (e) => e.type === 'warning', said.from);
      assert.match(warning.payload.message, /cannot be steered/);
      assert.equal((await s.rest(said)).end.reason, 'end_turn');
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
      if (is.retries === 'none') {
        assert.deepEqual([turn.one('error').code, turn.one('error').retryable, turn.end.reason], ['rate_limited', true, 'error']);
        return;
      }
      assert.deepEqual(turn.all('retry').map((r) => r.code), is.retries === 'told' ? ['rate_limited'] : []);
      assert.equal(turn.end.reason, 'end_turn');
    });

    test('a rate limit for ever', limit, async () => {
      const turn = await s.turn('rehearse:429');
      assert.ok(turn.all('retry').every((r) => r.code === 'rate_limited'));
      const error = turn.one('error');
      assert.deepEqual([error.code, error.http_status, error.retryable, turn.end.reason], ['rate_limited', 429, true, 'error']);
    });

    for (const [scene, code] of [['403', 'permission_denied'], ['404', 'model_unavailable'], ['401', 'auth']]) {
      test(`the provider says ${scene}`, limit, async () => {
        const turn = await s.turn(`rehearse:${scene}`);
        assert.deepEqual([turn.one('error').code, turn.end.reason], [code, 'error']);
      });
    }

    test('the provider is overloaded: that is told at once, and it can be stopped', limit, async () => {
      const said = await s.say('rehearse:529');
      const told = await s.event('a retry, or an error', (e) => e.type === 'retry' || e.type === 'error', said.from);
      assert.equal(told.payload.code, 'provider_down');
      await s.post('/interrupt');
      assert.ok(['interrupted', 'error'].includes((await s.rest(said)).end.reason));
    });

    test('a stream that breaks once', limit, async () => {
      const turn = await s.turn('rehearse:cut-once');
      const whole = new Set(turn.all('assistant.message').map((m) => m.item_id));
      assert.ok(turn.all('assistant.delta').every((d) => whole.has(d.item_id)), 'what was begun is closed');
      if (is.cut === 'error') {
        assert.deepEqual([turn.one('error').code, turn.end.reason], ['provider_down', 'error']);
        return;
      }
      assert.equal(turn.all('retry').length > 0, is.cut === 'retry');
      assert.ok(turn.all('retry').every((r) => r.code === 'provider_down'));
      assert.equal(turn.end.reason, 'end_turn');
    });

    test('a spent budget: one request, and the word of the sidecar', limit, async () => {
      // A grant of another text begins at nothing: the first turn spends it.
      pod.grant(`[{scope: ai.${is.provider}, limits: {tokensPerDay: 1}}]`);
      const refused = () => pod.lines('audit.jsonl').filter((r) => r.code === 'budget_exhausted' && r.provider === is.provider && r.bytes_in > 1000);
      try {
        await until('the budget to be spent', async () => (await s.turn('rehearse:text')).end.reason === 'error');
        await until('the first record', () => refused().length > 0);
        const before = refused().length;
        const turn = await s.turn('rehearse:text');
        const error = turn.one('error');
        assert.deepEqual([turn.end.reason, error.code], ['error', 'billing']);
        assert.match(error.message, /^Blocked by workspace policy .*1 tokens per day/);
        await until('its record', () => refused().length > before);
        assert.equal(refused().length - before, 1, 'one request');
      } finally {
        pod.grant(GRANTS);
      }
      await until('the grants again', async () => (await s.turn('rehearse:text')).end.reason === 'end_turn');
    });

    test('a withdrawn grant: one request, and the word of the sidecar', limit, async () => {
      pod.grant('[]');
      await until('the new grants', async () => (await fetch(`${pod.url}/v1/messages`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"claude-sonnet-5-5","messages":[]}' })).status === 403);
      const denied = () => pod.lines('audit.jsonl').filter((r) => r.code === 'scope_denied' && r.provider === is.provider && r.bytes_in > 1000);
      try {
        const said = await s.say('rehearse:text');
        const event = await s.event('an error', (e) => e.type === 'error', said.from);
        const error = event.payload;
        assert.equal((await s.rest(said)).end.reason, 'error');
        assert.equal(error.code, 'permission_denied');
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
      const said = await busy('sleep', 'tool.use');
      for (const pid of s.agents()) { try { process.kill(pid, 'SIGKILL'); } catch {} }
      const turn = await s.rest(said);
      assert.equal(turn.end.reason, 'error');
      assert.equal(turn.one('tool.result').is_error, true);
      const crash = await s.event('the crash', (e) => e.type === 'error', said.from);
      assert.equal(crash.payload.code, 'runtime_crashed');
      const start = await s.event('a new start', (e) => e.type === 'session.start', said.from);
      assert.equal(start.payload.resumed, true);
      assert.equal(start.payload.native_session_id, s.events.find((e) => e.type === 'session.start').payload.native_session_id);
      const before = (await pod.audit()).length;
      assert.equal((await s.turn('rehearse:text are you there?')).end.reason, 'end_turn');
      const record = (await pod.audit(before + 1)).at(-1);
      const first = (await pod.audit()).find((r) => r.decision === 'allow');
      assert.ok(record.bytes_in > first.bytes_in, 'its history is sent with it');
    });

    test('after a stop in good order a turn has its own usage', limit, async () => {
      s.child.kill('SIGTERM');
      await s.exited;
      await s.subscribed;
      s.spawn();
      await s.event('the start', (e) => e.type === 'session.start', s.events.length);
      const before = (await pod.audit()).length;
      const { usage } = (await s.turn('rehearse:text how much?')).end;
      const [record, ...more] = (await pod.audit(before + 1)).slice(before);
      assert.deepEqual([more.length, usage.input, usage.output], [0, record.tokens.input, record.tokens.output]);
    });

    test('the adapter is killed: the stream goes on where it was', limit, async () => {
      const said = await busy('slow', 'assistant.delta');
      const waiting = await s.say('rehearse:text', { mode: 'queue' });
      s.child.kill('SIGKILL');
      await s.exited;
      await s.subscribed;
      s.spawn();
      assert.equal((await s.rest(said)).end.reason, 'error');
      assert.equal((await s.rest(waiting)).end.reason, 'end_turn');
      assert.equal(s.events.filter((e) => e.type === 'session.start').at(-1).payload.resumed, true);
    });

    test('the provider is down: that is told, and it can be stopped', limit, async () => {
      pod.children[0].kill('SIGKILL');
      const said = await s.say('rehearse:text anybody?');
      const told = await s.event('a retry, or an error', (e) => e.type === 'retry' || e.type === 'error', said.from);
      assert.equal(told.payload.code, 'provider_down');
      await s.post('/interrupt');
      assert.ok(['interrupted', 'error'].includes((await s.rest(said)).end.reason));
    });

    test('permissions are asked for, given and denied', { ...limit, skip: is.noPermissions && 'it has none, and is not started' }, async (t) => {
      const asking = await separate(t, runtime, { args: ['--permissions', 'ask'] });
      await asking.ready();
      for (const [decision, is_error] of [['allow', false], ['deny', true]]) {
        const said = await asking.say(`rehearse:touch ${decision}`);
        const request = (await asking.event('a request', (e) => e.type === 'permission.request', said.from)).payload;
        assert.equal(request.name, 'bash');
        assert.match(request.input.command ?? JSON.stringify(request), /^touch/);
        assert.equal((await asking.post(`/permission/${request.request_id}`, { decision: 'perhaps' })).status, 400);
        assert.equal((await asking.post(`/permission/${request.request_id}`, { decision })).status, 202);
        const turn = await asking.rest(said);
        assert.deepEqual(turn.one('permission.resolved'), { request_id: request.request_id, decision, by: 'user' });
        assert.equal(turn.one('tool.result').is_error, is_error);
        assert.equal((await asking.post(`/permission/${request.request_id}`, { decision })).status, 404);
      }
    });

    test('permissions that it cannot ask for: it is not started', { ...limit, skip: !is.noPermissions && 'it can' }, () => {
      const refused = () => execFileSync(bin, ['adapter', '--runtime', runtime, '--permissions', 'ask', '--check'], { env: {}, stdio: 'pipe' });
      assert.throws(refused, (e) => e.status === 64 && /has no permissions/.test(e.stderr));
    });

    test('too many steps end the turn, and the way there is told', limit, async (t) => {
      const limited = await separate(t, runtime, { config: { session: { maxSteps: 4 } } });
      await limited.ready();
      // A script of the provider that calls a tool again and again.
      const turn = await limited.turn('rehearse:loop');
      assert.equal(turn.end.reason, 'max_steps');
      assert.deepEqual(turn.all('warning').map((w) => w.message), [1, 2, 3, 4].map((n) => `step ${n} of 4 of this turn`));
      assert.deepEqual(turn.all('tool.result').map((r) => r.exit_code), [0, 0, 0, 0], 'no further command began');
    });

    test('subagents are off unless they are wanted, and then theirs is told apart', { ...limit, skip: !is.task && 'theirs is not told by this CLI' }, async (t) => {
      const script = { steps: [{ tools: [is.task] }, { say: 'done' }] };
      const off = await separate(t, runtime, {}, script);
      await off.ready();
      const refused = await off.turn('go');
      assert.equal(refused.one('tool.result').is_error, true);
      const on = await separate(t, runtime, { config: { session: { subagents: true } } }, script);
      await on.ready();
      const turn = await on.turn('go');
      const use = turn.all('tool.use').find((u) => u.name === 'task');
      const inner = turn.all('tool.use').find((u) => u.name === 'bash');
      assert.equal(inner.parent_tool_use_id, use.tool_use_id);
      assert.equal(turn.all('tool.result').length, 2);
      assert.equal(turn.end.final_text, 'done');
    });

    test('as another user than root', { ...limit, skip: process.getuid() !== 0 && 'nobody here is root' }, async (t) => {
      const plain = await separate(t, runtime, { uid: 65534 });
      await plain.ready();
      const turn = await plain.turn('rehearse:shell');
      assert.deepEqual([turn.end.reason, turn.one('tool.result').exit_code], ['end_turn', 0]);
    });

    test('one shot: one turn, and the end says how it went', limit, async (t) => {
      const once = await separate(t, runtime, { args: ['--prompt', 'rehearse:shell'], env: { SESSION_MODE: 'oneshot' } });
      const end = await once.event('the end', (e) => e.type === 'session.end');
      assert.equal(end.payload.reason, 'completed');
      assert.match(end.payload.resume_token, new RegExp(`^${runtime}:`));
      assert.equal(once.events.find((e) => e.type === 'user.message').payload.source, 'initial');
      assert.equal(await once.exited, 0);
    });
  });
}

test('opencode: a model that there is not', { ...limit, skip: !names.includes('opencode') && 'it is not chosen' }, async (t) => {
  const odd = await separate(t, 'opencode', { args: ['--model', 'anthropic/no-such-model'] });
  await odd.ready();
  const turn = await odd.turn('rehearse:text');
  assert.deepEqual([turn.one('error').code, turn.end.reason], ['model_unavailable', 'error']);
});

test('the same script gives the same stream, but for what the documentation names', { ...limit, skip: names.length < 2 && 'one is chosen' }, async (t) => {
  const shapes = {};
  for (const runtime of names) {
    const session = await separate(t, runtime, {});
    await session.ready();
    const turn = await session.turn('rehearse:shell');
    const shape = turn.events
      // How texts and outputs are cut into pieces is the CLI's own affair.
      .filter((e) => !['session.stage', 'assistant.delta', 'tool.output'].includes(e.type))
      .map(({ type, turn_id, payload: p }) => {
        // docs/ui-developers.md: fields that differ between runtimes.
        const kept = { turn: p.turn, name: p.name, command: p.input?.command, is_error: p.is_error, exit_code: p.exit_code, reason: p.reason, source: p.source, output: p.output?.trim() };
        return JSON.stringify({ type, turn_id, ...kept });
      });
    shapes[runtime] = shape;
  }
  for (const [runtime, shape] of Object.entries(shapes)) assert.deepEqual(shape, shapes[names[0]], runtime);
});
