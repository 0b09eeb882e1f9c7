// The JavaScript library `ai` with the provider's package that the argument names.

import { generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

import { model, prompt, run, toolResult, url } from './shared.mjs';

const [, , by, how] = process.argv;

async function language() {
  switch (by) {
    case 'anthropic':
      return (await import('@ai-sdk/anthropic')).createAnthropic({ baseURL: `${url}/anthropic/v1`, apiKey: 'dummy' })(model);
    // The address that the documentation gives for Anthropic's clients, without a version in it.
    case 'anthropic-by-environment':
      return (await import('@ai-sdk/anthropic')).anthropic(model);
    case 'openai-responses':
      return (await import('@ai-sdk/openai')).createOpenAI({ baseURL: `${url}/openai/v1`, apiKey: 'dummy' })(model);
    case 'openai-chat':
      return (await import('@ai-sdk/openai')).createOpenAI({ baseURL: `${url}/openai/v1`, apiKey: 'dummy' }).chat(model);
    case 'google':
      return (await import('@ai-sdk/google')).createGoogleGenerativeAI({ baseURL: `${url}/google/v1beta`, apiKey: 'dummy' })(model);
  }
}

await run(async () => {
  const bash = tool({ description: 'Runs a shell command.', inputSchema: z.object({ command: z.string() }), execute: () => toolResult });
  const call = { model: await language(), prompt, tools: { bash }, stopWhen: stepCountIs(4) };
  if (how !== 'stream') return (await generateText(call)).text;
  let failure;
  const text = await streamText({ ...call, onError: ({ error }) => (failure = error) }).text.catch((error) => { throw failure ?? error; });
  if (failure) throw failure;
  return text;
});
