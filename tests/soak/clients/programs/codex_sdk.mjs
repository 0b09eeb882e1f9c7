// The JavaScript library `@openai/codex-sdk`, with the Codex that it brings.

import { Codex } from '@openai/codex-sdk';

import { model, prompt, run, url } from './shared.mjs';

await run(async () => {
  const codex = new Codex({ baseUrl: `${url}/openai/v1`, apiKey: 'dummy' });
  const thread = codex.startThread({ model, workingDirectory: process.cwd(), skipGitRepoCheck: true, sandboxMode: 'danger-full-access', approvalPolicy: 'never' });
  return (await thread.run(prompt)).finalResponse;
});
