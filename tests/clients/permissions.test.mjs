// Permissions with each real CLI: asked for, allowed and denied on the console page in a real
// browser; and a session that denies runs no command at all.

import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { launchBrowser } from './browser.mjs';
import { bin, chosen, clis, closedNetwork, freePorts, until } from './kit.mjs';
import { eventsOf, runsOfSuite } from './run.mjs';

closedNetwork();
const limit = { timeout: 180_000 };
// pi has no permissions: such a session is refused at its start.
const RUNTIMES = chosen(['opencode', 'claude', 'codex', 'gemini']);

let browser;
before(async () => {
  browser = await launchBrowser();
});
after(() => browser?.close());

/** `outrigger up`, and its page. */
async function open(runtime, ...args) {
  const dir = mkdtempSync(join(tmpdir(), 'outrigger-ask-'));
  const port = await freePorts(5);
  mkdirSync(join(dir, 'work'));
  const words = ['up', '--dir', join(dir, 'o'), '--port', String(port), '--workdir', join(dir, 'work'), '--runtime', runtime, ...args];
  const up = spawn(bin, words, { env: { PATH: `${clis}:${process.env.PATH}`, HOME: dir }, stdio: ['ignore', 'pipe', 'pipe'] });
  const session = { dir, port, up, output: '', made: join(dir, 'work/rehearsal-was-here') };
  up.stdout.on('data', (d) => (session.output += d));
  up.stderr.on('data', (d) => (session.output += d));
  await until('the console', () => session.output.includes('The console:'), 60_000).catch((e) => assert.fail(`${e.message}\n${session.output}`));
  session.page = await browser.newPage({ viewport: { width: 900, height: 1100 } });
  await session.page.goto(`http://localhost:${port}/`);
  await session.page.waitForSelector('#state.open');
  session.close = async () => {
    await session.page.close();
    const gone = new Promise((done) => up.once('exit', done));
    up.kill('SIGTERM');
    await gone;
    rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
  };
  return session;
}
async function say(page, text) {
  await page.fill('#text', text);
  await page.keyboard.press('Enter');
}
const turns = (page, n) => page.waitForFunction((n) => document.querySelectorAll('.usage').length >= n, n, { timeout: 60_000 });

for (const runtime of RUNTIMES) {
  test(`${runtime}: a command is allowed, and another is denied, on the page`, limit, async (t) => {
    const session = await open(runtime, '--permissions', 'ask');
    t.after(session.close);
    const { page, made } = session;
    await say(page, 'rehearse:touch first');
    await page.waitForSelector('.ask button', { timeout: 60_000 });
    // The request stands behind the call that it is about.
    const before = await page.evaluate(() => {
      const [tool, ask] = [document.querySelector('details.tool'), document.querySelector('.ask')];
      return !!tool && !!(tool.compareDocumentPosition(ask) & Node.DOCUMENT_POSITION_FOLLOWING);
    });
    assert.ok(before, 'the call is told before its request');
    assert.equal(existsSync(made), false, 'nothing runs before it is allowed');
    await page.click('.ask button:text-is("Allow")');
    await turns(page, 1);
    assert.equal(existsSync(made), true, 'it ran');
    rmSync(made);
    await say(page, 'rehearse:touch second');
    await page.click('.ask button:text-is("Deny")', { timeout: 60_000 });
    await turns(page, 2);
    assert.equal(existsSync(made), false, 'it did not run');
    assert.equal(await page.locator('details.tool summary .bad').count(), 1, 'the denied call has failed');
    assert.equal(await page.textContent('#said'), '');
  });
}

describe('a session that denies', limit, () => {
  const { run } = runsOfSuite();
  for (const runtime of RUNTIMES) {
    test(`${runtime} runs no command, however harmless`, limit, async () => {
      const { code, out, err } = await run('--json', '--runtime', runtime, '--permissions', 'deny', '--task', 'rehearse:shell');
      assert.equal(code, 0, err);
      const events = eventsOf(out);
      const ran = events.filter((e) => e.type === 'tool.result' && !e.payload.is_error);
      assert.deepEqual(ran, []);
      assert.ok(!JSON.stringify(events.filter((e) => e.type.startsWith('tool.')).map((e) => e.payload.output)).includes('rehearsal-was-here'));
    });
  }
  test('pi is refused', limit, async () => {
    const { code, err } = await run('--json', '--runtime', 'pi', '--permissions', 'deny', '--task', 'rehearse:shell');
    assert.equal(code, 64);
    assert.match(err, /pi has no permissions/);
  });
});

test('inputs that wait survive a reload, and can be taken back', { ...limit, skip: !RUNTIMES.includes('gemini') && 'its CLI is not chosen' }, async (t) => {
  // Gemini CLI takes nothing while it works: what is said then waits.
  const session = await open('gemini');
  t.after(session.close);
  const { page } = session;
  await say(page, 'rehearse:slow');
  await page.waitForSelector('.turn .text', { timeout: 60_000 });
  for (const text of ['rehearse:text one', 'rehearse:text two']) {
    await say(page, text);
    await page.waitForFunction((text) => [...document.querySelectorAll('.pending')].some((n) => n.textContent.includes(text)), text);
  }
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll('.pending').length === 2, null, { timeout: 30_000 });
  await page.locator('.pending', { hasText: 'two' }).getByText('Take back').click();
  await page.waitForFunction(() => document.querySelectorAll('.pending').length === 1);
  await page.click('#stop');
  await turns(page, 2);
  assert.deepEqual(await page.locator('.user').allTextContents(), ['rehearse:slow', 'rehearse:text one']);
});

test('an input whose answer is lost is delivered once', { ...limit, skip: !RUNTIMES.includes('opencode') && 'its CLI is not chosen' }, async (t) => {
  const session = await open('opencode');
  t.after(session.close);
  const { page } = session;
  let cut = 0;
  await page.route('**/inject', async (route) => {
    if (cut++ > 0) return route.continue();
    await route.fetch();
    return route.abort('connectionreset');
  });
  await say(page, 'rehearse:text once');
  await page.waitForFunction(() => document.querySelector('#said').textContent !== '' || document.querySelectorAll('.usage').length > 0);
  // Whoever sees it fail sends it again.
  await page.fill('#text', 'rehearse:text once');
  await page.keyboard.press('Enter');
  await turns(page, 1);
  await say(page, 'rehearse:text then another');
  await page.waitForFunction(() => [...document.querySelectorAll('.user')].some((n) => n.textContent === 'rehearse:text then another'), null, { timeout: 60_000 });
  assert.deepEqual(await page.locator('.user:not(.pending)').allTextContents(), ['rehearse:text once', 'rehearse:text then another']);
});
