// The JavaScript library `openai`: a turn with a tool by `responses` or by `chat`, whichever is the argument.

import OpenAI from 'openai';

import { model, prompt, run, schema, toolResult, url } from './shared.mjs';

const client = new OpenAI({ baseURL: `${url}/openai/v1`, apiKey: 'dummy' });

async function byResponses() {
  const tools = [{ type: 'function', name: 'bash', description: 'Runs a shell command.', parameters: schema, strict: false }];
  const input = [{ role: 'user', content: prompt }];
  for (let step = 0; step < 4; step++) {
    const reply = await client.responses.create({ model, input, tools });
    const calls = reply.output.filter((item) => item.type === 'function_call');
    if (!calls.length) return reply.output_text;
    for (const call of calls) input.push(call, { type: 'function_call_output', call_id: call.call_id, output: toolResult });
  }
  throw new Error('the model did not stop calling the tool');
}

async function byChat() {
  const bash = { type: 'function', function: { name: 'bash', description: 'Runs a shell command.', parameters: schema, function: () => toolResult, parse: JSON.parse } };
  return client.chat.completions.runTools({ model, messages: [{ role: 'user', content: prompt }], tools: [bash] }, { maxChatCompletions: 4 }).finalContent();
}

await run({ responses: byResponses, chat: byChat }[process.argv[2]]);
