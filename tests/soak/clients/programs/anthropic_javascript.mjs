// The JavaScript library `@anthropic-ai/sdk`: its own tool runner, with its defaults.

import Anthropic from '@anthropic-ai/sdk';

import { model, prompt, run, schema, toolResult, url } from './shared.mjs';

await run(async () => {
  const client = new Anthropic({ baseURL: `${url}/anthropic`, apiKey: 'dummy' });
  const bash = { name: 'bash', description: 'Runs a shell command.', input_schema: schema, parse: (input) => input, run: () => toolResult };
  const runner = client.beta.messages.toolRunner({ model, max_tokens: 1000, max_iterations: 4, messages: [{ role: 'user', content: prompt }], tools: [bash] });
  const reply = await runner.runUntilDone();
  return reply.content.map((block) => block.text ?? '').join('');
});
