// The OpenAPI document is one that generators take: a client is generated from it, and compiles.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { bin, closedNetwork, modules } from './kit.mjs';

closedNetwork();

test('openapi-typescript generates types that a client can be written with', { timeout: 120_000 }, (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'outrigger-openapi-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const [document, types, client] = ['openapi.json', 'types.ts', 'client.ts'].map((name) => join(dir, name));
  writeFileSync(document, execFileSync(bin, ['schema', 'openapi']));
  const env = { PATH: process.env.PATH, HOME: dir };
  execFileSync(join(modules, '.bin/openapi-typescript'), [document, '-o', types], { env, stdio: 'pipe' });
  writeFileSync(client, `
import type { components, operations } from './types';
const input: components['schemas']['Input'] = { text: 'hello', mode: 'queue' };
type Events = components['schemas']['Event'];
export const end = (event: Events) => (event.type === 'turn.end' ? event.payload.usage.output : null);
export const decide: NonNullable<operations['decide']['requestBody']>['content']['application/json'] = { decision: 'allow' };
export type Waiting = operations['listInputs']['responses'][200]['content']['application/json']['inputs'][number]['state'];
export default input;
`);
  const checked = execFileSync(join(modules, '.bin/tsc'), ['--noEmit', '--strict', '--skipLibCheck', '--target', 'es2022', '--module', 'esnext', '--moduleResolution', 'bundler', client], { env, encoding: 'utf8' });
  assert.equal(checked, '');
});
