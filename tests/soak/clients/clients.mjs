// Every client: which API it speaks, how it is told where the sidecar is, and how it is run.
//
// `start` is given the client's scratch home, the sidecar's address and a model, and says which
// command to run in which environment. Nothing but that environment, PATH, HOME and a terminal
// type reaches the client.

import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

export const PROMPT = 'Look around with your shell, then say what you saw.';
export const MODELS = { anthropic: 'claude-sonnet-5-5', openai: 'gpt-5.5', google: 'gemini-2.5-pro' };

function write(path, text) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, typeof text === 'string' ? text : JSON.stringify(text));
}

/** A program of ours that uses a Python library; `venv` is the environment that has the library. */
const python = (venv, program, args = [], env = () => ({})) => ({ url, model, cache }) => ({
  command: [join(cache, venv, 'bin/python'), join(cache, 'programs', program), ...args],
  env: { OUTRIGGER_URL: url, OUTRIGGER_MODEL: model, PYTHONDONTWRITEBYTECODE: '1', ...env(url) },
});

/** A program of ours that uses a JavaScript library. */
const javascript = (program, args = [], env = () => ({})) => ({ url, model, cache, node }) => ({
  command: [node, join(cache, 'javascript/programs', program), ...args],
  env: { OUTRIGGER_URL: url, OUTRIGGER_MODEL: model, ...env(url) },
});

const npm = (cache, name) => join(cache, 'javascript/node_modules/.bin', name);
const claudeEnv = (url) => ({ ANTHROPIC_BASE_URL: `${url}/anthropic`, ANTHROPIC_AUTH_TOKEN: 'dummy', CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1', IS_SANDBOX: '1' });

function claude({ url, model, cache }) {
  return {
    command: [npm(cache, 'claude'), '-p', PROMPT, '--model', model, '--dangerously-skip-permissions', '--output-format', 'json'],
    env: claudeEnv(url),
  };
}

function codex({ home, url, model, cache }) {
  write(join(home, 'codex/config.toml'), `model = "${model}"
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
  return { command: [npm(cache, 'codex'), 'exec', '--skip-git-repo-check', '--json', PROMPT], env: { CODEX_HOME: join(home, 'codex') } };
}

function gemini({ home, url, model, cache }) {
  write(join(home, '.gemini/settings.json'), { security: { auth: { selectedType: 'gemini-api-key' } }, privacy: { usageStatisticsEnabled: false }, telemetry: { enabled: false }, general: { enableAutoUpdate: false, enableAutoUpdateNotification: false } });
  return {
    command: [npm(cache, 'gemini'), '-p', PROMPT, '-m', model, '--yolo'],
    env: { GOOGLE_GEMINI_BASE_URL: `${url}/google`, GEMINI_API_KEY: 'dummy', GEMINI_CLI_TRUST_WORKSPACE: 'true', GEMINI_CLI_NO_RELAUNCH: 'true' },
  };
}

const opencodeOff = Object.fromEntries(['MODELS_FETCH', 'AUTOUPDATE', 'DEFAULT_PLUGINS', 'LSP_DOWNLOAD'].map((what) => [`OPENCODE_DISABLE_${what}`, '1']));

/** Without this, opencode would try to fetch a package of its own. */
function withoutPlugin(home) {
  mkdirSync(join(home, '.config/opencode/node_modules'), { recursive: true });
  write(join(home, '.config/opencode/package-lock.json'), '{"lockfileVersion":3,"packages":{"":{"dependencies":{"@opencode-ai/plugin":"*"}}}}');
}

const opencode = (id, path) => ({ home, url, model, cache }) => {
  withoutPlugin(home);
  const config = { autoupdate: false, share: 'disabled', model: `${id}/${model}`, small_model: `${id}/${model}`, provider: { [id]: { options: { baseURL: `${url}${path}`, apiKey: 'dummy' } } } };
  return { command: [npm(cache, 'opencode'), 'run', '--format', 'json', '--title', 'a title', PROMPT], env: { OPENCODE_CONFIG_CONTENT: JSON.stringify(config), ...opencodeOff } };
};

function opencodeSdk(given) {
  withoutPlugin(given.home);
  const { command, env } = javascript('opencode_sdk.mjs')(given);
  return { command, env: { ...env, ...opencodeOff }, path: [join(given.cache, 'javascript/node_modules/.bin')] };
}

const qwen = (type, envOf) => ({ home, url, model, cache }) => {
  write(join(home, '.qwen/settings.json'), { security: { auth: { selectedType: type } }, privacy: { usageStatisticsEnabled: false }, telemetry: { enabled: false }, general: { enableAutoUpdate: false, disableAutoUpdate: true } });
  return { command: [npm(cache, 'qwen'), '-p', PROMPT, '-m', model, '--auth-type', type, '--yolo'], env: { QWEN_CODE_NO_RELAUNCH: 'true', ...envOf(url) } };
};

const copilot = (type, path, more = {}) => ({ url, model, cache }) => ({
  command: [npm(cache, 'copilot'), '-p', PROMPT, '--allow-all-tools', '--no-color'],
  env: { COPILOT_OFFLINE: 'true', COPILOT_PROVIDER_BASE_URL: `${url}${path}`, COPILOT_PROVIDER_TYPE: type, COPILOT_PROVIDER_API_KEY: 'dummy', COPILOT_MODEL: model, COPILOT_AUTO_UPDATE: 'false', ...more },
});

const kimi = (type, path) => ({ url, model, cache, node }) => ({
  command: [node, npm(cache, 'kimi'), '-p', PROMPT],
  env: { KIMI_MODEL_NAME: model, KIMI_MODEL_API_KEY: 'dummy', KIMI_MODEL_PROVIDER_TYPE: type, KIMI_MODEL_BASE_URL: `${url}${path}`, KIMI_CODE_NO_AUTO_UPDATE: '1' },
});

const vibe = (style, path) => ({ home, url, model, cache }) => {
  write(join(home, '.vibe/config.toml'), `active_model = "chosen"
enable_telemetry = false
enable_update_checks = false
[[providers]]
name = "outrigger"
api_base = "${url}${path}"
api_key_env_var = "OUTRIGGER_DUMMY_KEY"
api_style = "${style}"
backend = "generic"
[[models]]
name = "${model}"
provider = "outrigger"
alias = "chosen"
`);
  return { command: [join(cache, 'vibe/bin/vibe'), '-p', PROMPT, '--auto-approve', '--trust', '--output', 'text'], env: { OUTRIGGER_DUMMY_KEY: 'dummy', VIBE_HOME: join(home, '.vibe') } };
};

// Aider offers no tools: its turn is one request and one answer. By OpenAI's chat API it does not
// ask for the usage.
const aider = (prefix, envOf) => ({ url, model, cache }) => ({
  command: [join(cache, 'aider/bin/aider'), '--model', `${prefix}/${model}`, '--message', PROMPT, '--yes-always', '--no-git', '--no-check-update', '--no-analytics', '--no-show-model-warnings', '--no-show-release-notes', '--no-pretty', '--map-tokens', '0'],
  env: { LITELLM_LOCAL_MODEL_COST_MAP: 'True', ...envOf(url) },
});

const openaiEnv = (url) => ({ OPENAI_BASE_URL: `${url}/openai/v1`, OPENAI_API_KEY: 'dummy' });
const anthropicEnv = (url) => ({ ANTHROPIC_BASE_URL: `${url}/anthropic`, ANTHROPIC_API_KEY: 'dummy' });
const googleEnv = (url) => ({ GOOGLE_GEMINI_BASE_URL: `${url}/google`, GEMINI_API_KEY: 'dummy' });

// `requests` is how many a turn takes. The others say what a client cannot do, or now and then
// does: `threads` asks for a stored thread first, and does without one when that is refused;
// `known` gives, for a case that fails, the reason why it stays so.
const client = (name, api, start, more = {}) => ({ name, api, start, model: MODELS[api], requests: 2, ...more });

export const CLIENTS = [
  client('anthropic (Python)', 'anthropic', python('libraries', 'anthropic_messages.py')),
  client('anthropic tool runner (Python)', 'anthropic', python('libraries', 'anthropic_tool_runner.py'), { threads: true }),
  client('@anthropic-ai/sdk tool runner', 'anthropic', javascript('anthropic_javascript.mjs'), { threads: true }),
  client('langchain-anthropic', 'anthropic', python('langchain', 'langchain_chat.py', ['anthropic'])),
  client('ai with @ai-sdk/anthropic', 'anthropic', javascript('ai_sdk.mjs', ['anthropic'])),
  client('ai with @ai-sdk/anthropic, streamed, by environment', 'anthropic', javascript('ai_sdk.mjs', ['anthropic-by-environment', 'stream'], anthropicEnv)),
  client('claude-agent-sdk (Python)', 'anthropic', python('libraries', 'claude_agent.py', [], claudeEnv)),
  client('claude', 'anthropic', claude),
  client('opencode, Anthropic', 'anthropic', opencode('anthropic', '/anthropic/v1'), { mayHang: true }),
  client('@opencode-ai/sdk', 'anthropic', opencodeSdk, { mayHang: true }),
  client('qwen, Anthropic', 'anthropic', qwen('anthropic', anthropicEnv)),
  client('copilot, Anthropic', 'anthropic', copilot('anthropic', '/anthropic')),
  client('kimi, Anthropic', 'anthropic', kimi('anthropic', '/anthropic')),
  client('vibe, Anthropic', 'anthropic', vibe('anthropic', '/anthropic')),
  client('aider, Anthropic', 'anthropic', aider('anthropic', (url) => ({ ANTHROPIC_API_BASE: `${url}/anthropic`, ANTHROPIC_API_KEY: 'dummy' })), { requests: 1, noTool: true }),

  client('openai, Responses (Python)', 'openai', python('libraries', 'openai_python.py', ['responses'])),
  client('openai, Chat (Python)', 'openai', python('libraries', 'openai_python.py', ['chat'])),
  client('openai-agents (Python)', 'openai', python('libraries', 'openai_agents.py', [], openaiEnv)),
  client('langchain-openai, Responses', 'openai', python('langchain', 'langchain_chat.py', ['openai', 'responses'])),
  client('langchain-openai, Chat', 'openai', python('langchain', 'langchain_chat.py', ['openai', 'chat'])),
  client('openai, Responses (JavaScript)', 'openai', javascript('openai_javascript.mjs', ['responses'])),
  client('openai, Chat (JavaScript)', 'openai', javascript('openai_javascript.mjs', ['chat'])),
  client('ai with @ai-sdk/openai, Responses', 'openai', javascript('ai_sdk.mjs', ['openai-responses'])),
  client('ai with @ai-sdk/openai, Chat, streamed', 'openai', javascript('ai_sdk.mjs', ['openai-chat', 'stream'])),
  client('@openai/codex-sdk', 'openai', javascript('codex_sdk.mjs')),
  client('codex', 'openai', codex),
  client('opencode, OpenAI', 'openai', opencode('openai', '/openai/v1'), { mayHang: true }),
  client('qwen, OpenAI Chat', 'openai', qwen('openai', openaiEnv)),
  client('qwen, OpenAI Responses', 'openai', qwen('openai-responses', openaiEnv)),
  client('copilot, OpenAI Chat', 'openai', copilot('openai', '/openai/v1')),
  client('copilot, OpenAI Responses', 'openai', copilot('openai', '/openai/v1', { COPILOT_PROVIDER_WIRE_API: 'responses' })),
  client('kimi, OpenAI Chat', 'openai', kimi('openai', '/openai/v1')),
  client('kimi, OpenAI Responses', 'openai', kimi('openai_responses', '/openai/v1')),
  client("kimi, Moonshot's own kind", 'openai', kimi('kimi', '/openai/v1')),
  client('vibe, OpenAI Chat', 'openai', vibe('openai', '/openai/v1')),
  client('vibe, OpenAI Responses', 'openai', vibe('openai-responses', '/openai/v1')),
  client('aider, OpenAI', 'openai', aider('openai', (url) => ({ OPENAI_API_BASE: `${url}/openai/v1`, OPENAI_API_KEY: 'dummy' })), { requests: 1, noTool: true, tellsNoUsage: true, known: { denied: 'it retries a 403, and cannot be told from any other program that uses the library of OpenAI' } }),

  client('google-genai (Python)', 'google', python('libraries', 'google_genai_python.py')),
  client('langchain-google-genai', 'google', python('langchain', 'langchain_chat.py', ['google'])),
  client('@google/genai', 'google', javascript('google_genai_javascript.mjs')),
  client('ai with @ai-sdk/google', 'google', javascript('ai_sdk.mjs', ['google'])),
  client('gemini', 'google', gemini),
  client('opencode, Google', 'google', opencode('google', '/google/v1beta'), { mayHang: true }),
  client('qwen, Google', 'google', qwen('gemini', googleEnv)),
  client('kimi, Google', 'google', kimi('google-genai', '/google')),
];
