// `outrigger up` with the real opencode, and its console page in a real browser.

import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { spawn } from 'node:child_process';
import { launchBrowser } from './browser.mjs';
import { bin, closedNetwork, freePorts, modules, until } from './kit.mjs';

closedNetwork();

let dir, up, port, browser, output = '';

before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'outrigger-up-'));
  port = await freePorts(5);
  const args = ['up', '--dir', join(dir, 'o'), '--port', String(port), '--program', join(modules, '.bin/opencode'), '--prompt', 'What is here? <img src=x onerror="document.title=1">'];
  // A key in this environment must not get to the agent.
  up = spawn(bin, args, { env: { PATH: process.env.PATH, HOME: dir, ANTHROPIC_API_KEY: 'sk-ant-this-is-the-users-own-key' }, stdio: ['ignore', 'pipe', 'pipe'] });
  up.stdout.on('data', (d) => (output += d));
  up.stderr.on('data', (d) => (output += d));
  browser = await launchBrowser();
});

after(async () => {
  await browser?.close();
  if (up && up.exitCode === null) up.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
});

test('a turn with a tool call is on the page, and what is typed there is answered', { timeout: 120_000 }, async () => {
  await until('the console', () => output.includes('The console:'), 30_000).catch((e) => assert.fail(`${e.message}\n${output}`));
  const page = await browser.newPage({ viewport: { width: 900, height: 1100 } });
  const wrong = [];
  page.on('console', (m) => m.type() === 'error' && wrong.push(m.text()));
  page.on('pageerror', (e) => wrong.push(String(e)));
  await page.goto(`http://localhost:${port}/`);
  await page.waitForSelector('details.tool summary .good', { timeout: 60_000 });
  assert.match(await page.textContent('details.tool summary'), /bash.*echo rehearsal-was-here.*exit 0/);
  await page.waitForFunction(() => document.querySelectorAll('.usage').length === 1, null, { timeout: 30_000 });
  assert.match(await page.textContent('.turn'), /The tool said: rehearsal-was-here/);
  assert.match(await page.textContent('.usage'), /[\d,]+ in .* out/);
  // What was typed is text, whatever it holds.
  assert.match(await page.textContent('.user'), /<img src=x/);
  assert.equal(await page.locator('main img').count(), 0);

  await page.fill('#text', 'rehearse:reasoning and more');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => document.querySelectorAll('.usage').length === 2, null, { timeout: 30_000 });
  assert.equal(await page.locator('.user').count(), 2);
  assert.equal(await page.locator('details.reasoning').count(), 1);

  // Interrupted from the keyboard.
  await page.fill('#text', 'rehearse:slow');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => !document.querySelector('#stop').disabled, null, { timeout: 30_000 });
  await page.waitForFunction(() => document.querySelector('.turn:last-of-type .text')?.textContent.length > 5, null, { timeout: 30_000 });
  await page.focus('#text');
  await page.keyboard.press('Escape');
  await page.waitForFunction(() => /interrupted/.test([...document.querySelectorAll('.usage')].at(-1)?.textContent), null, { timeout: 30_000 });

  // A page that comes later, on a phone, sees the same.
  const phone = await browser.newPage({ viewport: { width: 360, height: 640 } });
  await phone.goto(`http://localhost:${port}/`);
  await phone.waitForFunction(() => document.querySelectorAll('.usage').length === 3, null, { timeout: 30_000 });
  const text = (p) => p.evaluate(() => [...document.querySelectorAll('main .text, main .user, main .usage, main summary')].map((n) => n.textContent).join('\n'));
  assert.equal(await text(phone), await text(page));
  assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'nothing sticks out on a phone');
  assert.deepEqual(wrong, []);
});

test('nothing on the page keeps anybody out', { timeout: 60_000 }, async () => {
  const page = await browser.newPage();
  await page.goto(`http://localhost:${port}/`);
  await page.waitForFunction(() => document.querySelectorAll('.usage').length === 3, null, { timeout: 30_000 });
  // Not by a script tag: the page runs no script but its own.
  await page.evaluate(readFileSync(join(modules, 'axe-core/axe.min.js'), 'utf8'));
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map((v) => [v.id, v.impact, v.nodes.map((n) => n.html)]), []);
});

test('a long session is laid out a few times, not once per piece', { timeout: 120_000 }, async () => {
  for (let i = 0; i < 3; i++) {
    const sent = await fetch(`http://localhost:${port}/inject`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ text: 'rehearse:long', mode: 'queue' }) });
    assert.equal(sent.status, 202);
  }
  const status = () => fetch(`http://localhost:${port}/status`).then((r) => r.json());
  await until('the turns', async () => { const s = await status(); return s.state === 'idle' && s.inputs_waiting === 0 && s.turn >= 6; }, 60_000);
  const page = await browser.newPage();
  const inspector = await page.context().newCDPSession(page);
  await inspector.send('Performance.enable');
  await page.goto(`http://localhost:${port}/`);
  await page.waitForFunction(() => document.querySelectorAll('.usage').length === 6, null, { timeout: 60_000 });
  const { metrics } = await inspector.send('Performance.getMetrics');
  const layouts = metrics.find((m) => m.name === 'LayoutCount').value, { sequence } = await status();
  assert.ok(sequence > 4000 && layouts < sequence / 10, `${layouts} layouts of ${sequence} events`);
});

test('the agent has no key: not in its environment, not in its files', async () => {
  const canaries = ['sk-ant-this-is-the-users-own-key', 'sk-rehearsal-not-a-real-key'];
  const processes = readdirSync('/proc').filter((p) => /^\d+$/.test(p));
  const read = (path) => { try { return readFileSync(path, 'latin1'); } catch { return ''; } };
  const environments = processes.map((p) => read(`/proc/${p}/environ`)).filter((e) => e.includes('OUTRIGGER_SESSION='));
  assert.ok(environments.length > 0, 'the agent runs');
  for (const canary of canaries) assert.ok(!environments.some((e) => e.includes(canary)), canary);
  const walk = (d) => readdirSync(d, { withFileTypes: true }).flatMap((e) => (e.isDirectory() ? walk(join(d, e.name)) : e.isFile() ? [join(d, e.name)] : []));
  const files = ['home', 'workspace', 'session'].flatMap((d) => walk(join(dir, 'o', d)));
  assert.ok(files.length > 3);
  for (const file of files) for (const canary of canaries) assert.ok(!read(file).includes(canary), `${canary} in ${file}`);
});

test('Ctrl-C leaves nothing behind', { timeout: 30_000 }, async () => {
  const gone = new Promise((done) => up.once('exit', (code) => done(code)));
  const began = Date.now();
  up.kill('SIGINT');
  assert.equal(await gone, 130, output);
  const left = readdirSync('/proc').filter((p) => /^\d+$/.test(p)).filter((p) => {
    try { return readFileSync(`/proc/${p}/environ`, 'latin1').includes(dir); } catch { return false; }
  });
  assert.deepEqual(left, []);
  assert.ok(Date.now() - began < 5000, `${Date.now() - began} ms`);
});
