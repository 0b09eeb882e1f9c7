// Every client, unchanged, through a sidecar and a rehearsal on this machine, three times:
//
//   turn    a turn with a tool ends well, and the audit has its model and its tokens
//   denied  the model is not granted: one request, and our message on the client's output
//   budget  the budget is spent: one request, and our message on the client's output
//
//   OUTRIGGER=BINARY node run.mjs FOLDER [--case turn|denied|budget] [--jobs N] [PATTERN ...]
//
// FOLDER is where install.sh put the clients; a client runs when its name matches a pattern
// (all, without one). It prints one line a client and case, and exits 1 if any of them failed, but
// for those that `known` in clients.mjs explains.
//
// No client can reach anything but this machine: all run in a network namespace that has
// loopback only, in scratch homes, with an environment made from nothing.

import { spawn, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { availableParallelism, networkInterfaces, tmpdir } from 'node:os';
import { delimiter, dirname, join, resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { CLIENTS, MODELS } from './clients.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const KEY = 'sk-canary-5a1c93-only-the-sidecar-has-this';
const PATIENCE = 60_000;
/** With a client that now and then hangs without a word, before it is started again. */
const PATIENCE_WITH_SILENCE = 30_000;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { case: { type: 'string', multiple: true }, jobs: { type: 'string', default: String(Math.min(availableParallelism(), 4)) } },
});
const binary = process.env.OUTRIGGER && resolve(process.env.OUTRIGGER);
const cache = positionals[0] && resolve(positionals[0]);
if (!binary || !existsSync(binary) || !cache || !existsSync(cache)) {
  console.error('usage: OUTRIGGER=BINARY node run.mjs FOLDER [--case CASE] [--jobs N] [PATTERN ...]');
  process.exit(64);
}

// Starts itself again in a closed network, and in a process namespace where that is possible:
// with the namespace ends whatever a client left running.
if (Object.keys(networkInterfaces()).some((name) => name !== 'lo')) {
  const ways = [
    ['--net', '--pid', '--fork', '--kill-child', '--mount-proc'],
    ['--user', '--map-root-user', '--net', '--pid', '--fork', '--kill-child', '--mount-proc'],
    ['--net'],
    ['--user', '--map-root-user', '--net'],
  ];
  const way = ways.find((flags) => spawnSync('unshare', [...flags, 'true']).status === 0);
  if (!way || process.env.OUTRIGGER_SOAK_INSIDE) {
    console.error('CANNOT RUN: no client is started where it could reach anything, and no closed network can be had here');
    process.exit(1);
  }
  // Here too is whatever is left over when this is interrupted.
  const scratch = mkdtempSync(join(tmpdir(), 'outrigger-soak-'));
  // The shell stays, so that it is the first process of the namespace and collects orphans.
  const script = 'ip link set lo up || exit 1; "$@"; exit $?';
  const child = spawn('unshare', [...way, 'sh', '-c', script, 'run', process.execPath, ...process.argv.slice(1)], {
    stdio: 'inherit',
    env: { PATH: process.env.PATH, TMPDIR: scratch, OUTRIGGER: binary, OUTRIGGER_SOAK_INSIDE: '1' },
  });
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill('SIGKILL'));
  const code = await new Promise((done) => child.once('exit', (status) => done(status ?? 1)));
  rmSync(scratch, { recursive: true, force: true, maxRetries: 5 });
  process.exit(code);
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((ready) => server.once('listening', ready));
  const { port } = server.address();
  await new Promise((closed) => server.close(closed));
  return port;
}

async function until(what, holds, patience = 10_000) {
  const end = Date.now() + patience;
  for (;;) {
    const value = await holds();
    if (value) return value;
    if (Date.now() > end) throw new Error(`${what}: not within ${patience} ms`);
    await pause(20);
  }
}

/** A rehearsal, and a sidecar in front of it that grants as told. */
class Pod {
  static async start(grant) {
    const pod = new Pod();
    pod.dir = mkdtempSync(join(tmpdir(), 'pod-'));
    pod.children = [];
    try {
      const [port, admin, upstream] = [await freePort(), await freePort(), await freePort()];
      pod.url = `http://localhost:${port}`;
      mkdirSync(join(pod.dir, 'secrets/all'), { recursive: true });
      writeFileSync(join(pod.dir, 'secrets/all/key'), KEY);
      const provider = (path) => `{ baseUrl: "http://127.0.0.1:${upstream}${path}", secretRef: { name: all, key: key } }`;
      writeFileSync(join(pod.dir, 'sidecar.yaml'), `listen: 127.0.0.1:${port}
admin: 127.0.0.1:${admin}
secretsDir: ${pod.dir}/secrets
audit: { file: ${pod.dir}/audit.jsonl }
aiProviders: { anthropic: ${provider('')}, openai: ${provider('/v1')}, google: ${provider('')} }
permissionGrants: [${grant}]
`);
      pod.run(['rehearse', '--listen', `127.0.0.1:${upstream}`]);
      pod.run(['sidecar', '--config', join(pod.dir, 'sidecar.yaml'), '--session-id', 'ses_soak']);
      await until('the sidecar', () => fetch(`http://127.0.0.1:${admin}/readyz`).then((reply) => reply.ok, () => false));
      await until('the rehearsal', () => fetch(`http://127.0.0.1:${upstream}/`).then(() => true, () => false));
      return pod;
    } catch (error) {
      await pod.stop();
      throw error;
    }
  }

  run(args) {
    this.children.push(spawn(binary, args, { env: {}, stdio: 'ignore' }));
  }

  records() {
    const path = join(this.dir, 'audit.jsonl');
    return existsSync(path) ? readFileSync(path, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line)) : [];
  }

  async stop() {
    for (const child of this.children) {
      if (child.exitCode !== null || child.signalCode !== null || !child.pid) continue;
      const gone = new Promise((done) => child.once('exit', done));
      child.kill('SIGTERM');
      const killer = setTimeout(() => child.kill('SIGKILL'), 5000);
      await gone;
      clearTimeout(killer);
    }
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5 });
  }
}

const ASK = {
  anthropic: ['/anthropic/v1/messages', (model, content) => ({ model, max_tokens: 10, messages: [{ role: 'user', content }] })],
  openai: ['/openai/v1/responses', (model, input) => ({ model, input })],
  google: ['/google/v1beta/models/{model}:generateContent', (model, text) => ({ contents: [{ parts: [{ text }] }] })],
};

/** One request of our own. */
async function ask(pod, api, model) {
  const [path, body] = ASK[api];
  const reply = await fetch(pod.url + path.replace('{model}', model), {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body(model, 'rehearse:text')),
  });
  return { status: reply.status, body: await reply.json() };
}

/** Is it a request for an answer of a model, and not a list, a count or a greeting? */
const isInference = (record) => record.endpoint && !/^(probe|models?|count_?tokens|input_tokens)$/i.test(record.endpoint) && record.code !== 'websocket_unsupported' && record.code !== 'route_denied';

/** What a person would read: without colours, broken lines and what JSON does to text. */
function readable(output) {
  return output
    .replace(/\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07/g, '')
    .replace(/(\\+n|[│|])/g, ' ')
    .replace(/\\+"/g, '"')
    .replace(/\s+/g, ' ');
}

async function runOnce(client, pod, home, patience) {
  const node = ['x64', 'arm64'].map((machine) => join(cache, `javascript/node_modules/node-linux-${machine}/bin/node`)).find(existsSync) ?? process.execPath;
  const { command, env, path = [] } = client.start({ home, url: pod.url, model: client.model, cache, node });
  if (!existsSync(command[0])) throw new Error(`${command[0]} is not installed`);
  const child = spawn(command[0], command.slice(1), {
    cwd: join(home, 'work'),
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: [...path, dirname(node), process.env.PATH].join(delimiter), HOME: home, TMPDIR: join(home, 'tmp'), TERM: 'xterm-256color', LANG: 'C.UTF-8', USER: 'agent', ...env },
  });
  const end = () => {
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // All of its processes are gone.
    }
  };
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (output += data));
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    end();
  }, patience);
  const started = Date.now();
  const code = await new Promise((done, failed) => {
    child.once('error', failed);
    child.once('exit', (status) => setTimeout(() => done(status), 200));
  });
  clearTimeout(timer);
  end();
  child.stdout.destroy();
  child.stderr.destroy();
  return { code, late, output, text: readable(output), ms: Date.now() - started };
}

/**
 * Runs the client once. One that is known to hang now and then without a word is then started
 * again, and that is said; one that asks more often than it should (`most`) does not merely hang.
 */
async function run(client, pod, notes, most) {
  for (let attempt = 1; ; attempt++) {
    const home = mkdtempSync(join(tmpdir(), 'home-'));
    mkdirSync(join(home, 'work'));
    mkdirSync(join(home, 'tmp'));
    const before = pod.records().length;
    try {
      const last = !client.mayHang || attempt === 3;
      const result = await runOnce(client, pod, home, last ? PATIENCE : PATIENCE_WITH_SILENCE);
      // A record is written when its reply has ended; some wait a little for their client.
      await pause(300);
      const records = pod.records().slice(before);
      if (!last && result.late && records.filter(isInference).length <= most) {
        notes.push(`it hung, after it had asked ${brief(records)}; it was started again`);
        continue;
      }
      const others = records.filter((record) => !isInference(record));
      if (others.length) notes.push(`besides: ${[...new Set(others.map((record) => `${record.endpoint ?? 'no endpoint'} ${record.code ?? record.status}`))].join(', ')}`);
      return { ...result, records: records.filter(isInference) };
    } finally {
      rmSync(home, { recursive: true, force: true, maxRetries: 5 });
    }
  }
}

/** Without the one request of a tool runner that is refused for its thread, after which it goes on without. */
function withoutThread(client, records, notes) {
  const first = client.threads ? records.findIndex((record) => record.code === 'scope_denied') : -1;
  if (first < 0 || first === records.length - 1) return records;
  notes.push('a thread was refused, and it went on without');
  return records.filter((_, index) => index !== first);
}

class Failure extends Error {}
const check = (holds, what) => {
  if (!holds) throw new Failure(what);
};
/** What the records say, each once. */
function brief(records) {
  const counts = new Map();
  for (const { model_requested, decision, status, code } of records) {
    const said = `${model_requested} ${decision} ${status} ${code ?? ''}`.trim();
    counts.set(said, (counts.get(said) ?? 0) + 1);
  }
  return [...counts].map(([said, count]) => (count > 1 ? `${count} × ${said}` : said)).join(', ') || 'nothing';
}

const CASES = {
  async turn(client, notes) {
    const pod = await Pod.start(`{ scope: "ai.${client.api}" }`);
    try {
      const { code, late, text, ms, records: all } = await run(client, pod, notes, client.requests);
      const records = withoutThread(client, all, notes);
      check(!late, `not ended within ${PATIENCE} ms; asked ${brief(records)}; it said: ${text.slice(-600)}`);
      check(code === 0, `exit ${code}; asked ${brief(records)}; it said: ${text.slice(-600)}`);
      check(client.noTool || text.includes('rehearsal-was-here'), `the tool's text is not on its output, which was: ${text.slice(-600)}`);
      check(records.length === client.requests, `${records.length} requests, not ${client.requests}: ${brief(records)}`);
      for (const record of records) {
        const seen = [record.provider, record.model_requested, record.model_reported, record.decision, record.status];
        check(seen.join() === [client.api, client.model, client.model, 'allow', 200].join(), `a wrong record: ${JSON.stringify(record)}`);
        if (client.tellsNoUsage && record.tokens.input === null) continue;
        // The rehearsal counts a token for every four bytes that it is sent.
        check(record.tokens.input === Math.max(1, Math.floor(record.bytes_in / 4)) && record.tokens.output > 0 && record.usage_complete, `wrong tokens: ${JSON.stringify(record)}`);
      }
      check(!text.includes(KEY), 'the key is on its output');
      return `${ms} ms`;
    } finally {
      await pod.stop();
    }
  },

  denied: (client, notes) => refused(client, notes, { grant: `{ scope: "ai.${client.api}:another" }`, code: 'scope_denied' }),

  budget: (client, notes) => refused(client, notes, { grant: `{ scope: "ai.${client.api}", limits: { tokensPerDay: 1 } }`, code: 'budget_exhausted', spend: true }),
};

async function refused(client, notes, { grant, code, spend }) {
  const pod = await Pod.start(grant);
  try {
    if (spend) {
      const paid = await ask(pod, client.api, client.model);
      if (paid.status !== 200) throw new Error(`the budget could not be spent: ${JSON.stringify(paid)}`);
      await until('the record of what was spent', () => pod.records().some((record) => record.status === 200));
    }
    // What the sidecar says to a client that it does not know.
    const refusal = await ask(pod, client.api, client.model);
    const [message, hint] = refusal.body.error.message.split('\n');
    await until('the record of our own request', () => pod.records().some((record) => record.code === code));
    const { code: exit, late, text, ms, records: all } = await run(client, pod, notes, 1);
    const records = withoutThread(client, all, notes);
    const seen = `asked ${brief(records)}`;
    const shown = text.includes(readable(message));
    if (shown && hint && !text.includes(readable(hint))) notes.push('the hint is not on its output');
    if (!shown) notes.push(`it said: ${text.slice(-600)}`);
    check(records.length > 0, `no request; exit ${exit}`);
    check(records.every((record) => record.code === code), `not refused as it should be: ${seen}`);
    check(records.length === 1, `${late ? `still at it after ${PATIENCE} ms, ` : ''}${seen}${shown ? '' : '; our message is not on its output'}`);
    check(!late, `not ended within ${PATIENCE} ms`);
    check(shown, `our message is not on its output (the status was ${records[0].status})`);
    return `${records[0].status}, ${ms} ms`;
  } finally {
    await pod.stop();
  }
}

// The programs are copied beside the libraries that they import.
for (const folder of ['programs', 'javascript/programs']) cpSync(join(here, 'programs'), join(cache, folder), { recursive: true });

const wanted = positionals.slice(1).map((pattern) => new RegExp(pattern, 'i'));
const jobs = CLIENTS.filter(({ name }) => !wanted.length || wanted.some((pattern) => pattern.test(name)))
  .flatMap((client) => Object.keys(CASES).filter((name) => !options.case || options.case.includes(name)).map((name) => ({ client, name })));
const total = jobs.length;
if (!total) {
  console.error('no client and case match');
  process.exit(64);
}
let number = 0;
let failed = 0;
let limits = 0;
console.log(`TAP version 13\n1..${total}`);
async function work() {
  for (let job; (job = jobs.shift()); ) {
    const { client, name } = job;
    const notes = [];
    let line;
    try {
      const said = await CASES[name](client, notes);
      line = [`ok`, `(${said})`];
      if (client.known?.[name]) notes.push(`this is no longer so: ${client.known[name]}`);
    } catch (error) {
      const known = error instanceof Failure && client.known?.[name];
      if (known) limits++;
      else failed++;
      line = ['not ok', known ? `# TODO ${known}` : ''];
      notes.unshift(error instanceof Failure ? error.message : `${error.stack ?? error}`);
    }
    console.log(`${line[0]} ${++number} - ${client.name}: ${name} ${line[1]}`.trimEnd());
    for (const note of notes) console.log(`#   ${note.replaceAll('\n', '\n#   ')}`);
  }
}
await Promise.all(Array.from({ length: Math.max(1, Number(options.jobs)) }, work));
if (limits) console.log(`# known limits of clients: ${limits}`);
console.log(`${total - failed - limits} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
