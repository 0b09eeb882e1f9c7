// The official libraries, unchanged, with a dummy key: a streamed answer, a tool call, and
// the typed exception of a denied model, without a retry.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import Anthropic from '@anthropic-ai/sdk';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { GoogleGenAI } from '@google/genai';
import { APICallError, generateText, stepCountIs, streamText, tool } from 'ai';
import OpenAI from 'openai';
import { z } from 'zod';

import { KEY, Pod, closedNetwork } from './kit.mjs';

closedNetwork();
let pod;
before(async () => (pod = await Pod.start({ grants: '[{scope: "ai.anthropic:claude-*"}, {scope: "ai.openai:gpt-5*"}, {scope: "ai.google:gemini-*"}]' })));
after(() => pod.stop());

const said = /rehearsal: nobody was asked/;
const parameters = { type: 'object', properties: { command: { type: 'string' } }, required: ['command'] };
const denied = () => pod.lines('audit.jsonl').filter((r) => r.code === 'scope_denied').length;
const policy = /Blocked by workspace policy \(not a login problem\): model `nope`/;

/** Fails as it should, and asked once. */
async function refused(call, check) {
  const before = denied();
  await assert.rejects(call, (e) => {
    check(e);
    return true;
  });
  await new Promise((r) => setTimeout(r, 300));
  assert.equal(denied() - before, 1, 'one request, no retry');
}

test('@anthropic-ai/sdk', async () => {
  for (const baseURL of [`${pod.url}/anthropic`, pod.url]) {
    const sdk = new Anthropic({ baseURL, apiKey: 'dummy' });
    const ask = (content, more = {}) => ({ model: 'claude-sonnet-5-5', max_tokens: 100, messages: [{ role: 'user', content }], ...more });
    const stream = sdk.messages.stream(ask('rehearse:text'));
    let deltas = 0;
    stream.on('text', () => deltas++);
    const message = await stream.finalMessage();
    assert.match(message.content[0].text, said);
    assert.ok(deltas > 1);
    assert.ok(message.usage.input_tokens > 0 && message.usage.output_tokens > 1);
    const call = await sdk.messages.create(ask('go', { tools: [{ name: 'bash', input_schema: parameters }] }));
    assert.deepEqual(call.content.at(-1).input, { command: 'echo rehearsal-was-here' });
    assert.equal(call.stop_reason, 'tool_use');
    assert.ok((await sdk.messages.countTokens({ model: 'claude-sonnet-5-5', messages: [{ role: 'user', content: 'x' }] })).input_tokens > 0);
    await refused(sdk.messages.create({ ...ask('x'), model: 'nope' }), (e) => {
      assert.ok(e instanceof Anthropic.PermissionDeniedError);
      assert.match(e.message, policy);
      assert.equal(e.error.error.details.error_code, 'local_scope_denied');
    });
  }
});

test('openai', async () => {
  for (const baseURL of [`${pod.url}/openai/v1`, pod.url]) {
    const sdk = new OpenAI({ baseURL, apiKey: 'dummy' });
    let text = '';
    let usage;
    for await (const e of await sdk.responses.create({ model: 'gpt-5.5', input: 'rehearse:text', stream: true })) {
      if (e.type === 'response.output_text.delta') text += e.delta;
      if (e.type === 'response.completed') usage = e.response.usage;
    }
    assert.match(text, said);
    assert.ok(usage.output_tokens > 0);
    const call = await sdk.responses.create({ model: 'gpt-5.5', input: 'go', tools: [{ type: 'function', name: 'shell', parameters, strict: false }] });
    assert.equal(JSON.parse(call.output.find((i) => i.type === 'function_call').arguments).command, 'echo rehearsal-was-here');
    text = '';
    for await (const c of await sdk.chat.completions.create({ model: 'gpt-5.5', messages: [{ role: 'user', content: 'rehearse:text' }], stream: true, stream_options: { include_usage: true } })) {
      text += c.choices[0]?.delta?.content ?? '';
      usage = c.usage ?? usage;
    }
    assert.match(text, said);
    assert.ok(usage.completion_tokens > 0);
    const chat = await sdk.chat.completions.create({ model: 'gpt-5.5', messages: [{ role: 'user', content: 'go' }], tools: [{ type: 'function', function: { name: 'bash', parameters } }] });
    assert.equal(chat.choices[0].message.tool_calls[0].function.name, 'bash');
    for (const ask of [() => sdk.responses.create({ model: 'nope', input: 'x' }), () => sdk.chat.completions.create({ model: 'nope', messages: [] })]) {
      await refused(ask(), (e) => {
        assert.ok(e instanceof OpenAI.PermissionDeniedError);
        assert.match(e.message, policy);
        assert.equal(e.code, 'local_scope_denied');
      });
    }
    const models = await sdk.models.list();
    assert.deepEqual(models.data.map((m) => m.id), ['gpt-5.5', 'gpt-5.5-mini'], 'cut down to what is granted');
  }
});

test('@google/genai', async () => {
  const sdk = new GoogleGenAI({ apiKey: 'dummy', httpOptions: { baseUrl: `${pod.url}/google` } });
  const model = 'gemini-2.5-pro';
  let text = '';
  let usage;
  for await (const c of await sdk.models.generateContentStream({ model, contents: 'rehearse:text' })) {
    text += c.text ?? '';
    usage = c.usageMetadata;
  }
  assert.match(text, said);
  assert.ok(usage.candidatesTokenCount > 0);
  const call = await sdk.models.generateContent({ model, contents: 'go', config: { tools: [{ functionDeclarations: [{ name: 'run_shell_command', parametersJsonSchema: parameters }] }] } });
  assert.equal(call.functionCalls[0].args.command, 'echo rehearsal-was-here');
  assert.ok((await sdk.models.countTokens({ model, contents: 'x' })).totalTokens > 0);
  await refused(sdk.models.generateContent({ model: 'nope', contents: 'x' }), (e) => {
    assert.equal(e.status, 403);
    assert.match(e.message, policy);
  });
});

test('ai, with its Anthropic and OpenAI packages', async () => {
  const anthropic = createAnthropic({ baseURL: `${pod.url}/anthropic/v1`, apiKey: 'dummy' });
  const openai = createOpenAI({ baseURL: `${pod.url}/openai/v1`, apiKey: 'dummy' });
  for (const [good, bad] of [[anthropic('claude-sonnet-5-5'), anthropic('nope')], [openai('gpt-5.5'), openai('nope')], [openai.chat('gpt-5.5'), openai.chat('nope')]]) {
    const stream = streamText({ model: good, prompt: 'rehearse:text' });
    assert.match(await stream.text, said);
    assert.ok((await stream.usage).outputTokens > 0);
    let ran = '';
    const tools = { bash: tool({ description: 'a shell', inputSchema: z.object({ command: z.string() }), execute: ({ command }) => (ran = command) && 'it ran' }) };
    const turn = await generateText({ model: good, prompt: 'go', tools, stopWhen: stepCountIs(3) });
    assert.equal(ran, 'echo rehearsal-was-here');
    assert.match(turn.text, /The tool said: .*it ran/);
    await refused(generateText({ model: bad, prompt: 'x' }), (e) => {
      assert.ok(APICallError.isInstance(e), e.constructor.name);
      assert.match(e.message, policy);
      assert.equal(e.isRetryable, false);
    });
  }
});

test('every call is audited with its model and tokens', async () => {
  const records = await pod.audit();
  const allowed = records.filter((r) => r.decision === 'allow' && !['count_tokens', 'countTokens'].includes(r.endpoint));
  assert.ok(allowed.length >= 20, `${allowed.length}`);
  for (const r of allowed) {
    assert.equal(r.tokens.input, Math.max(1, Math.floor(r.bytes_in / 4)), `${r.provider} ${r.endpoint}: the rehearsal's own count`);
    assert.ok(r.tokens.output > 0 && r.usage_complete, JSON.stringify(r));
    assert.equal(r.model_reported, r.model_requested);
  }
  assert.ok(!JSON.stringify(records).includes(KEY));
});
