// `outrigger adapter` with a real CLI, and a subscriber that keeps every event.

import { spawn } from 'node:child_process';
import { chownSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import assert from 'node:assert/strict';
import { bin, clis, freePorts, until } from './kit.mjs';

export class Session {
  /** `pod`: the sidecar to use; `config`: what stands in adapter.yaml besides the program; `prepare`: fills the workspace; `uid`: who runs it. */
  static async start(pod, { args = [], config = {}, runtime = 'opencode', env = {}, prepare = () => {}, uid } = {}) {
    const s = new Session();
    s.pod = pod;
    s.dir = mkdtempSync(join(tmpdir(), 'outrigger-session-'));
    for (const d of ['home', 'work']) mkdirSync(join(s.dir, d));
    prepare(join(s.dir, 'work'));
    s.port = await freePorts(2);
    s.events = [];
    s.env = env;
    s.uid = uid;
    const agents = { agentRuntimes: { [runtime]: { program: join(clis, runtime) } } };
    writeFileSync(join(s.dir, 'adapter.yaml'), JSON.stringify({ agents, ...config }));
    s.args = ['adapter', '--config', join(s.dir, 'adapter.yaml'), '--runtime', runtime, '--sidecar', `http://127.0.0.1:${pod.port}`, '--workdir', join(s.dir, 'work'),
      '--journal', join(s.dir, 'journal'), '--stream', `127.0.0.1:${s.port}`, '--input', `127.0.0.1:${s.port + 1}`, ...args];
    if (uid) for (const d of ['', 'home', 'work']) chownSync(join(s.dir, d), uid, uid);
    s.spawn();
    return s;
  }

  spawn() {
    this.output = '';
    this.child = spawn(bin, this.args, { env: { PATH: process.env.PATH, HOME: join(this.dir, 'home'), ...this.env }, stdio: ['ignore', 'pipe', 'pipe'], ...(this.uid && { uid: this.uid, gid: this.uid }) });
    for (const pipe of [this.child.stdout, this.child.stderr]) pipe.on('data', (d) => (this.output += d));
    this.exited = new Promise((done) => this.child.once('exit', (code, signal) => done(code ?? signal)));
    this.subscribed = this.subscribe(this.child);
  }

  /** Follows the stream, resuming where it broke, for as long as this adapter runs. */
  async subscribe(child) {
    while (child.exitCode === null && child.signalCode === null) {
      try {
        const response = await fetch(`http://127.0.0.1:${this.port}/stream`, { headers: { 'last-event-id': String(this.events.length) } });
        let text = '';
        for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
          text += piece;
          const frames = text.split('\n\n');
          text = frames.pop();
          for (const frame of frames) {
            const data = frame.split('\n').find((l) => l.startsWith('data: '));
            if (!data) continue;
            const event = JSON.parse(data.slice(6));
            assert.equal(event.sequence, this.events.length + 1, 'no event is lost, repeated or out of order');
            this.events.push(event);
          }
        }
      } catch (e) {
        if (e.code === 'ERR_ASSERTION') { this.broken = e; return; }
        await new Promise((done) => setTimeout(done, 20));
      }
    }
  }

  /** The first event from `from` on that is asked for. */
  async event(what, matches, from = 0, patience = 30_000) {
    let at = -1;
    await until(what, () => {
      if (this.broken) throw this.broken;
      at = this.events.findIndex((e, i) => i >= from && matches(e));
      return at >= 0;
    }, patience).catch((e) => assert.fail(`${e.message}\n${this.output}\n${this.summary(from)}`));
    return this.events[at];
  }

  summary(from = 0) {
    return this.events.slice(from).map((e) => `${e.type} ${JSON.stringify(e.payload).slice(0, 160)}`).join('\n');
  }

  async post(path, body = {}) {
    const response = await fetch(`http://127.0.0.1:${this.port + 1}${path}`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
    return { status: response.status, body: await response.json() };
  }

  async ready() {
    await this.event('session.start', (e) => e.type === 'session.start');
  }

  /** Gives an input; its turn is what `turn_id` says when it starts. */
  async say(text, more = {}) {
    const from = this.events.length;
    const { status, body } = await this.post('/inject', { text, ...more });
    assert.equal(status, 202, JSON.stringify(body));
    return { from, id: body.input_id };
  }

  /** Gives an input and waits for the end of its turn; the turn's events. */
  async turn(text, more = {}) {
    return this.rest(await this.say(text, more));
  }

  async rest({ from, id }, patience) {
    const start = await this.event(`a turn of ${id}`, (e) => e.type === 'turn.start' && e.payload.input_ids.includes(id), from, patience);
    const end = await this.event(`the end of ${start.turn_id}`, (e) => e.type === 'turn.end' && e.turn_id === start.turn_id, from, patience);
    const events = this.events.slice(from, end.sequence);
    return new Turn(events, end.payload);
  }

  /** The CLI's processes. */
  agents() {
    const mark = `OUTRIGGER_SESSION=${this.events[0]?.session_id}`;
    return readdirSync('/proc').filter((p) => /^\d+$/.test(p)).filter((p) => {
      try { return readFileSync(`/proc/${p}/environ`, 'latin1').split('\0').includes(mark); } catch { return false; }
    }).map(Number);
  }

  /** Ends it, checks what holds for every stream, and leaves nothing. */
  async stop() {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill('SIGTERM');
    const code = await this.exited;
    await this.subscribed;
    if (this.broken) throw this.broken;
    assertRules(this.events);
    const unparsed = this.events.filter((e) => e.type === 'agent.unparsed').map((e) => JSON.stringify(e.payload.native).slice(0, 300));
    assert.deepEqual(unparsed, [], 'all that the CLI says is understood');
    assert.deepEqual(this.agents(), [], 'nothing of the CLI is left');
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5 });
    return code;
  }
}

class Turn {
  constructor(events, end) {
    Object.assign(this, { events, end });
  }

  all(type) {
    return this.events.filter((e) => e.type === type).map((e) => e.payload);
  }

  one(type) {
    const all = this.all(type);
    assert.equal(all.length, 1, `one ${type}: ${JSON.stringify(all).slice(0, 500)}`);
    return all[0];
  }

  /** What was written in pieces is what was written in the end. */
  assertPieces() {
    for (const [delta, whole] of [['assistant.delta', 'assistant.message'], ['reasoning.delta', 'reasoning']]) {
      for (const message of this.all(whole)) {
        const pieces = this.all(delta).filter((d) => d.item_id === message.item_id).map((d) => d.text).join('');
        assert.equal(pieces.trimEnd(), message.text.trimEnd());
      }
    }
  }
}

/** docs/ui-developers.md: what holds for every stream. */
export function assertRules(events) {
  let turn = null;
  const tools = new Set(), used = new Set();
  for (const { type, turn_id, payload } of events) {
    if (type === 'turn.start') { assert.equal(turn, null); turn = payload.turn; }
    if (type === 'turn.end') { assert.equal(turn, payload.turn); assert.equal(tools.size, 0, 'each use has its result'); turn = null; }
    if (type === 'tool.use') { assert.ok(!used.has(payload.tool_use_id)); used.add(payload.tool_use_id); tools.add(payload.tool_use_id); }
    if (type === 'tool.result') assert.ok(tools.delete(payload.tool_use_id), 'each result has its use');
    if (turn !== null && type !== 'turn.end') assert.equal(turn_id, `turn_${turn}`);
  }
  assert.equal(turn, null);
  assert.equal(tools.size, 0);
}
