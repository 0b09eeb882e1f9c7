// The JavaScript library `@opencode-ai/sdk`, which starts the `opencode` that is on its PATH.

import { createOpencode } from '@opencode-ai/sdk';

import { model, prompt, run, url } from './shared.mjs';

await run(async () => {
  const id = `anthropic/${model}`;
  const config = { autoupdate: false, share: 'disabled', model: id, small_model: id, provider: { anthropic: { options: { baseURL: `${url}/anthropic/v1`, apiKey: 'dummy' } } } };
  const { client, server } = await createOpencode({ port: 0, timeout: 30_000, config });
  try {
    // With a title of its own, the session does not ask a model for one.
    const session = await client.session.create({ body: { title: 'a title' } });
    const reply = await client.session.prompt({ path: { id: session.data.id }, body: { model: { providerID: 'anthropic', modelID: model }, parts: [{ type: 'text', text: prompt }] } });
    if (reply.error) throw new Error(JSON.stringify(reply.error));
    if (reply.data.info.error) throw new Error(JSON.stringify(reply.data.info.error));
    return reply.data.parts.map((part) => part.text ?? '').join('');
  } finally {
    server.close();
  }
});
