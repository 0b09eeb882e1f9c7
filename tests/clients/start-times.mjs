// How long until a session can take an input, and until the first word of an answer: each CLI
// bare, by its own protocol, and behind `outrigger adapter`, taking turns. Prints the table of
// docs/benchmarks.md. `tests/clients/run.sh --plain start-times.mjs [rounds]`.

import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Pod, clis, closedNetwork, until } from './kit.mjs';
import { Session } from './session.mjs';

closedNetwork();
const rounds = Number(process.argv[2] ?? 5);
const TASK = 'rehearse:text';
const pod = await Pod.start();

/** The bare CLIs: how they are started, and what is said to them until the first word comes. */
const BARE = {
  opencode: {
    args: ['serve', '--hostname', '127.0.0.1', '--port', '0'],
    env: (dir) => {
      mkdirSync(join(dir, '.config/opencode/node_modules'), { recursive: true });
      writeFileSync(join(dir, '.config/opencode/package-lock.json'), '{"lockfileVersion":3,"packages":{"":{"dependencies":{"@opencode-ai/plugin":"*"}}}}');
      const config = { autoupdate: false, model: 'anthropic/claude-sonnet-5-5', small_model: 'anthropic/claude-sonnet-5-5', provider: { anthropic: { options: { baseURL: `${pod.url}/anthropic/v1`, apiKey: 'dummy' } } } };
      return { OPENCODE_CONFIG_CONTENT: JSON.stringify(config), OPENCODE_DISABLE_MODELS_FETCH: '1', OPENCODE_DISABLE_AUTOUPDATE: '1', OPENCODE_DISABLE_DEFAULT_PLUGINS: '1', OPENCODE_DISABLE_LSP_DOWNLOAD: '1' };
    },
    async talk(cli, ready, word) {
      const url = await cli.line((l) => l.match(/listening on (http:\S+)/)?.[1]);
      const post = (path, body) => fetch(url + path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
      await until('its health', () => fetch(`${url}/global/health`).then((r) => r.ok, () => false));
      const events = await fetch(`${url}/event`);
      const { id } = await (await post('/session', { title: 't' })).json();
      ready();
      await post(`/session/${id}/prompt_async`, { parts: [{ type: 'text', text: TASK }] });
      let text = '';
      for await (const piece of events.body.pipeThrough(new TextDecoderStream())) if ((text += piece).includes('message.part.delta')) return word();
    },
  },
  claude: {
    args: ['-p', '--input-format', 'stream-json', '--output-format', 'stream-json', '--verbose', '--include-partial-messages', '--model', 'claude-sonnet-5-5', '--dangerously-skip-permissions'],
    env: () => ({ ANTHROPIC_BASE_URL: `${pod.url}/anthropic`, ANTHROPIC_AUTH_TOKEN: 'dummy', CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1', IS_SANDBOX: '1' }),
    async talk(cli, ready, word) {
      cli.say({ type: 'control_request', request_id: 'c1', request: { subtype: 'initialize' } });
      await cli.line((l) => l.includes('"control_response"'));
      ready();
      cli.say({ type: 'user', message: { role: 'user', content: TASK }, parent_tool_use_id: null, session_id: '' });
      await cli.line((l) => l.includes('"text_delta"'));
      word();
    },
  },
  codex: {
    args: ['app-server'],
    env: (dir) => {
      writeFileSync(join(dir, 'config.toml'), `model = "gpt-5.5"\nmodel_provider = "o"\napproval_policy = "never"\nsandbox_mode = "danger-full-access"\ncheck_for_update_on_startup = false\n[analytics]\nenabled = false\n[features]\nplugins = false\napps = false\nremote_plugin = false\n[model_providers.o]\nname = "o"\nbase_url = "${pod.url}/openai/v1"\nwire_api = "responses"\n`);
      return { CODEX_HOME: dir };
    },
    async talk(cli, ready, word) {
      cli.say({ id: 1, method: 'initialize', params: { clientInfo: { name: 'b', version: '0' } } });
      await cli.line((l) => l.includes('"id":1'));
      cli.say({ method: 'initialized' });
      cli.say({ id: 2, method: 'thread/start', params: { cwd: cli.dir } });
      const threadId = await cli.line((l) => l.includes('"id":2') && JSON.parse(l).result.thread.id);
      ready();
      cli.say({ id: 3, method: 'turn/start', params: { threadId, input: [{ type: 'text', text: TASK }] } });
      await cli.line((l) => l.includes('agentMessage/delta'));
      word();
    },
  },
  gemini: {
    args: ['--acp', '--yolo', '-m', 'gemini-2.5-pro'],
    env: (dir) => {
      mkdirSync(join(dir, '.gemini'));
      writeFileSync(join(dir, '.gemini/settings.json'), JSON.stringify({ security: { auth: { selectedType: 'gemini-api-key' } }, privacy: { usageStatisticsEnabled: false }, telemetry: { enabled: false }, general: { enableAutoUpdate: false, enableAutoUpdateNotification: false } }));
      return { GOOGLE_GEMINI_BASE_URL: `${pod.url}/google`, GEMINI_API_KEY: 'dummy', GEMINI_CLI_TRUST_WORKSPACE: 'true', GEMINI_CLI_NO_RELAUNCH: 'true' };
    },
    async talk(cli, ready, word) {
      const ask = (id, method, params) => cli.say({ jsonrpc: '2.0', id, method, params });
      ask(0, 'initialize', { protocolVersion: 1, clientCapabilities: { fs: { readTextFile: false, writeTextFile: false }, terminal: false } });
      await cli.line((l) => l.includes('"id":0'));
      ask(1, 'session/new', { cwd: cli.dir, mcpServers: [] });
      const sessionId = await cli.line((l) => l.includes('"id":1') && JSON.parse(l).result.sessionId);
      ready();
      ask(2, 'session/prompt', { sessionId, prompt: [{ type: 'text', text: TASK }] });
      await cli.line((l) => l.includes('agent_message_chunk'));
      word();
    },
  },
  pi: {
    args: ['--mode', 'rpc', '--provider', 'anthropic', '--model', 'claude-sonnet-5-5'],
    env: (dir) => {
      writeFileSync(join(dir, 'models.json'), JSON.stringify({ providers: { anthropic: { baseUrl: `${pod.url}/anthropic` } } }));
      return { PI_CODING_AGENT_DIR: dir, PI_OFFLINE: '1', ANTHROPIC_API_KEY: 'dummy' };
    },
    async talk(cli, ready, word) {
      cli.say({ type: 'get_state' });
      await cli.line((l) => l.includes('"get_state"'));
      ready();
      cli.say({ type: 'prompt', message: TASK });
      await cli.line((l) => l.includes('"text_delta"'));
      word();
    },
  },
};

async function bare(runtime) {
  const dir = mkdtempSync(join(tmpdir(), 'outrigger-start-'));
  const { args, env, talk } = BARE[runtime];
  const vars = { PATH: process.env.PATH, HOME: dir, TERM: 'xterm-256color', COLORTERM: 'truecolor', ...env(dir) };
  const since = Date.now();
  const child = spawn(join(clis, runtime), args, { cwd: dir, env: vars, stdio: ['pipe', 'pipe', 'ignore'], detached: true });
  const waiting = [], seen = [];
  createInterface({ input: child.stdout }).on('line', (l) => (waiting.length ? waiting.shift()(l) : seen.push(l)));
  const cli = {
    dir,
    say: (m) => child.stdin.write(`${JSON.stringify(m)}\n`),
    async line(matches) {
      for (;;) {
        const found = matches(seen.length ? seen.shift() : await new Promise((done) => waiting.push(done)));
        if (found) return found;
      }
    },
  };
  const times = {};
  await talk(cli, () => (times.ready = Date.now() - since), () => (times.word = Date.now() - since));
  const gone = new Promise((done) => child.once('exit', done));
  process.kill(-child.pid, 'SIGKILL');
  await gone;
  rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
  return times;
}

async function behind(runtime) {
  const since = Date.now();
  const session = await Session.start(pod, { runtime, args: ['--prompt', TASK] });
  const at = async (type) => Date.parse((await session.event(type, (e) => e.type === type)).timestamp) - since;
  const times = { ready: await at('session.start'), word: await at('assistant.delta') };
  await session.stop();
  return times;
}

const median = (all) => all.sort((a, b) => a - b)[Math.floor(all.length / 2)];
console.log('| runtime | bare: ready, ms | first word, ms | adapter: `session.start`, ms | first `assistant.delta`, ms | the adapter adds |\n|---|---|---|---|---|---|');
for (const runtime of Object.keys(BARE)) {
  const all = { bare: [], behind: [] };
  for (let i = 0; i < rounds; i++) {
    all.bare.push(await bare(runtime));
    all.behind.push(await behind(runtime));
  }
  const m = (of, key) => median(all[of].map((t) => t[key]));
  const added = m('behind', 'word') - m('bare', 'word');
  console.log(`| ${runtime} | ${m('bare', 'ready')} | ${m('bare', 'word')} | ${m('behind', 'ready')} | ${m('behind', 'word')} | ${added} ms |`);
}
await pod.stop();
process.exit();
