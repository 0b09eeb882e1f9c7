// Every field of the official SDKs that could name a model, a server or something stored has
// been judged: a new SDK cannot bring one that the sidecar's tables have not heard of.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fields } from './fields.mjs';
import { modules } from './kit.mjs';

const CLASSES = ['model', 'models', 'chooses', 'server', 'stored', 'background', 'content', 'harmless'];
const lines = readFileSync(join(import.meta.dirname, '../fixtures/fields.tsv'), 'utf8').trimEnd().split('\n');

test('every line of fields.tsv is whole', () => {
  const keys = lines.map((line) => line.split('\t').slice(0, 2).join('\t'));
  assert.deepEqual(keys, [...new Set(keys)].sort(), 'sorted, and each field once');
  for (const line of lines) {
    const [, , kind, note, ...rest] = line.split('\t');
    assert.ok(CLASSES.includes(kind) && note && !rest.length, line);
  }
});

test('fields.tsv judges what the SDKs can send, and nothing else', { timeout: 120_000 }, () => {
  const judged = new Set(lines.map((line) => line.split('\t').slice(0, 2).join(' ')));
  const found = new Set(fields(modules).map(({ provider, name }) => `${provider} ${name}`));
  assert.ok(found.size > 1000);
  const less = (a, b) => [...a].filter((field) => !b.has(field)).join('\n');
  assert.equal(less(found, judged), '', 'new in an SDK: read its comment, then give it a line');
  assert.equal(less(judged, found), '', 'no longer in an SDK: its line can go');
});
