// Every example of docs/ui-developers.md, as it stands there, against `outrigger up` on its own port.

import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { launchBrowser } from './browser.mjs';
import { bin, closedNetwork, modules, until } from './kit.mjs';

closedNetwork();
const text = readFileSync(join(import.meta.dirname, '../../docs/ui-developers.md'), 'utf8');
const blocks = (language) => [...text.matchAll(new RegExp('```' + language + '\\n([\\s\\S]*?)```', 'g'))].map((m) => m[1]);
let dir, up;

before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'outrigger-docs-'));
  up = spawn(bin, ['up', '--dir', dir, '--program', join(modules, '.bin/opencode'), '--prompt', 'rehearse:text'], { env: { PATH: process.env.PATH, HOME: dir }, stdio: 'ignore' });
  await until('the first turn', () => fetch('http://localhost:3100/status').then((r) => r.json()).then((s) => s.state === 'idle' && s.turn === 1, () => false), 40_000);
});
after(async () => {
  const gone = new Promise((done) => up.once('exit', done));
  up.kill('SIGTERM');
  await gone;
  rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
});

test('the commands', { timeout: 60_000 }, () => {
  const all = blocks('sh');
  assert.ok(all.length >= 4);
  const out = all.map((block) => execFileSync('sh', ['-ec', block], { encoding: 'utf8' }));
  assert.match(out[0], /^id: 1$/m);
  assert.match(out[1], /"input_id":"docs-1"/);
});

test('the page\'s scripts', { timeout: 60_000 }, async () => {
  const browser = await launchBrowser();
  try {
    const page = await browser.newPage(), said = [];
    page.on('console', (m) => said.push(m.text()));
    await page.goto('http://localhost:3100/');
    const all = blocks('js');
    assert.equal(all.length, 2);
    for (const block of all) await page.evaluate(`(async () => {${block}})()`);
    await until('what the examples ask for', async () => said.filter((s) => s.startsWith('This is a rehearsal')).length >= 2 && (await page.textContent('main')).includes('from a page'), 30_000);
  } finally {
    await browser.close();
  }
});
