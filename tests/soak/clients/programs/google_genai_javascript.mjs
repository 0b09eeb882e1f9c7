// The JavaScript library `@google/genai`, with its default API version.

import { GoogleGenAI } from '@google/genai';

import { model, prompt, run, schema, toolResult, url } from './shared.mjs';

await run(async () => {
  const client = new GoogleGenAI({ apiKey: 'dummy', httpOptions: { baseUrl: `${url}/google` } });
  const config = { tools: [{ functionDeclarations: [{ name: 'run_shell_command', description: 'Runs a shell command.', parametersJsonSchema: schema }] }] };
  const contents = [{ role: 'user', parts: [{ text: prompt }] }];
  for (let step = 0; step < 4; step++) {
    const reply = await client.models.generateContent({ model, contents, config });
    if (!reply.functionCalls?.length) return reply.text;
    contents.push(reply.candidates[0].content);
    contents.push({ role: 'user', parts: reply.functionCalls.map(({ id, name }) => ({ functionResponse: { id, name, response: { output: toolResult } } })) });
  }
  throw new Error('the model did not stop calling the tool');
});
