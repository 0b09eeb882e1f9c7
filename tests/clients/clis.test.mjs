// The four real CLIs in their one-shot modes: a turn with a tool through sidecar and
// rehearsal, with no network but loopback and no key; and, with the scope withdrawn, our
// message on their output within five seconds.

import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { KEY, Pod, client, closedNetwork, home } from './kit.mjs';

closedNetwork();
const PROMPT = 'Look around with your shell, then say what you saw.';

const CLIS = {
  claude: {
    model: 'claude-sonnet-5-5',
    provider: 'anthropic',
    setup: (dir, url) => ({
      args: ['-p', PROMPT, '--model', 'claude-sonnet-5-5', '--dangerously-skip-permissions', '--output-format', 'json'],
      env: { ANTHROPIC_BASE_URL: `${url}/anthropic`, ANTHROPIC_AUTH_TOKEN: 'dummy', CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1', IS_SANDBOX: '1' },
    }),
  },
  codex: {
    model: 'gpt-5.5',
    provider: 'openai',
    setup: (dir, url) => {
      mkdirSync(join(dir, 'codex'));
      writeFileSync(join(dir, 'codex/config.toml'), `model = "gpt-5.5"
model_provider = "outrigger"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[analytics]
enabled = false
[features]
plugins = false
apps = false
remote_plugin = false
[model_providers.outrigger]
name = "outrigger"
base_url = "${url}/openai/v1"
wire_api = "responses"
`);
      return { args: ['exec', '--skip-git-repo-check', '--json', PROMPT], env: { CODEX_HOME: join(dir, 'codex') } };
    },
  },
  gemini: {
    model: 'gemini-2.5-pro',
    provider: 'google',
    setup: (dir, url) => {
      mkdirSync(join(dir, '.gemini'));
      writeFileSync(join(dir, '.gemini/settings.json'), JSON.stringify({ security: { auth: { selectedType: 'gemini-api-key' } }, privacy: { usageStatisticsEnabled: false }, telemetry: { enabled: false }, general: { enableAutoUpdate: false, enableAutoUpdateNotification: false } }));
      return { args: ['-p', PROMPT, '-m', 'gemini-2.5-pro', '--yolo'], env: { GOOGLE_GEMINI_BASE_URL: `${url}/google`, GEMINI_API_KEY: 'dummy', GEMINI_CLI_TRUST_WORKSPACE: 'true', GEMINI_CLI_NO_RELAUNCH: 'true' } };
    },
  },
  opencode: {
    model: 'claude-sonnet-5-5',
    provider: 'anthropic',
    setup: (dir, url) => {
      const config = { autoupdate: false, share: 'disabled', model: 'anthropic/claude-sonnet-5-5', small_model: 'anthropic/claude-sonnet-5-5', provider: { anthropic: { models: { 'claude-sonnet-5-5': {} }, options: { baseURL: `${url}/anthropic/v1`, apiKey: 'dummy' } } } };
      // As the adapter does it: without this it would try to fetch its plugin package.
      mkdirSync(join(dir, '.config/opencode/node_modules'), { recursive: true });
      writeFileSync(join(dir, '.config/opencode/package-lock.json'), '{"lockfileVersion":3,"packages":{"":{"dependencies":{"@opencode-ai/plugin":"*"}}}}');
      const off = ['MODELS_FETCH', 'AUTOUPDATE', 'DEFAULT_PLUGINS', 'LSP_DOWNLOAD'];
      return { args: ['run', '--format', 'json', '--title', 't', PROMPT], env: { OPENCODE_CONFIG_CONTENT: JSON.stringify(config), ...Object.fromEntries(off.map((o) => [`OPENCODE_DISABLE_${o}`, '1'])) } };
    },
  },
};

let pod;
before(async () => (pod = await Pod.start()));
after(() => pod.stop());

/** Does any file below hold the key? */
function holdsKey(dir) {
  return readdirSync(dir, { recursive: true }).some((name) => {
    const path = join(dir, name);
    return existsSync(path) && statSync(path).isFile() && statSync(path).size < 50e6 && readFileSync(path).includes(KEY);
  });
}

/**
 * Runs a CLI once. `opencode run` now and then hangs without a word: it misses an answer or
 * an error of its own server. Then, and only then, it is started again, and that is said.
 */
async function turn(name, cli, pod) {
  for (let attempt = 1; ; attempt++) {
    const dir = home();
    const { args, env } = cli.setup(dir, pod.url);
    const seen = (await pod.audit(0)).length;
    const run = await client(name, args, { home: dir, cwd: join(dir, 'work'), env, timeout: 25_000 });
    const silent = run.signal === 'SIGKILL' && run.out === '';
    if (!silent || attempt === 5) return { dir, seen, run };
    const answered = (await pod.audit(0)).slice(seen).map((r) => r.code ?? r.status);
    console.log(`${name} HUNG WITHOUT A WORD after requests that were answered ${answered}; starting it again`);
    rmSync(dir, { recursive: true, force: true });
  }
}

for (const [name, cli] of Object.entries(CLIS)) {
  test(`${name} finishes a turn with a tool`, async () => {
    const { dir, seen, run } = await turn(name, cli, pod);
    assert.equal(run.code, 0, run.out);
    assert.match(run.out, /The tool said: .*rehearsal-was-here/s);
    const records = (await pod.audit(seen + 2)).slice(seen);
    assert.equal(records.length, 2, `one call for the tool, one for the answer: ${JSON.stringify(records)}`);
    for (const r of records) {
      assert.deepEqual([r.provider, r.model_requested, r.model_reported, r.decision, r.status], [cli.provider, cli.model, cli.model, 'allow', 200]);
      assert.equal(r.tokens.input, Math.floor(r.bytes_in / 4));
      assert.ok(r.tokens.output > 0 && r.usage_complete && r.stream);
    }
    assert.ok(!run.out.includes(KEY) && !holdsKey(dir), 'no key in its output or its files');
    console.log(`${name}: ${run.ms} ms, ${records.map((r) => `${r.bytes_in} B in, ${r.tokens.output} tokens out`).join('; ')}`);
    rmSync(dir, { recursive: true, force: true });
  });
}

test('with the scope withdrawn, each says so within five seconds', async (t) => {
  const narrow = await Pod.start({ grants: '[{scope: "ai.anthropic:another"}, {scope: "ai.openai:another"}, {scope: "ai.google:another"}]' });
  try {
    for (const [name, cli] of Object.entries(CLIS)) {
      await t.test(name, async () => {
        const { dir, seen, run } = await turn(name, cli, narrow);
        assert.match(run.out, /Blocked by workspace policy \(not a login problem\): model/, `${run.code} ${run.out}`);
        const records = (await narrow.audit(seen + 1)).slice(seen);
        // From the refusal on: how long a CLI takes to start is its own affair.
        const after = run.ended - Date.parse(records[0].ts);
        assert.ok(after < 5000, `${after} ms after the refusal, ${run.ms} ms in all`);
        assert.ok(records.every((r) => r.code === 'scope_denied' && r.scope_needed === `ai.${cli.provider}:${cli.model}`));
        assert.equal(records.length, 1, 'asked once');
        console.log(`${name}: ended ${after} ms after the refusal, ${run.ms} ms in all, exit ${run.code}`);
        rmSync(dir, { recursive: true, force: true });
      });
    }
  } finally {
    await narrow.stop();
  }
});
