// `outrigger run`: one task with each real CLI, its outcome as the exit code, and gone on with.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { closedNetwork, until } from './kit.mjs';
import { eventsOf, runsOfSuite } from './run.mjs';

closedNetwork();
const limit = { timeout: 120_000 };
const suite = runsOfSuite();
const { start, run } = suite;

for (const runtime of ['opencode', 'claude', 'codex', 'gemini', 'pi']) {
  test(`${runtime}: a task, gone on with, and one that fails`, limit, async () => {
    const first = await run('--runtime', runtime, '--task', 'rehearse:shell');
    assert.equal(first.code, 0, first.err);
    assert.match(first.out, /^I will look around first\.\nThe tool said: [^]*rehearsal-was-here/);
    assert.match(first.err, /^\[bash\] echo rehearsal-was-here\n/);
    const token = first.err.match(/--resume (\S+)\n$/)[1];

    const again = await run('--resume', token, '--task', 'rehearse:text again', '--json');
    assert.equal(again.code, 0, again.err);
    const events = eventsOf(again.out);
    const start = events.find((e) => e.type === 'session.start').payload;
    assert.deepEqual([start.resumed, start.runtime, `${runtime}:${start.native_session_id}`], [true, runtime, token]);
    assert.deepEqual([events.at(-1).type, events.at(-1).payload.resume_token], ['session.end', token]);

    const failed = await run('--runtime', runtime, '--task', 'rehearse:403');
    assert.equal(failed.code, 1, failed.err);
    assert.match(failed.err, /^\[error\] rehearsal: not allowed\n\[ended\] error\n/);
  });
}

test('the task from stdin; what is kept is one directory a run', limit, async () => {
  const piped = start(['--runtime', 'codex', '--task', '-', '--dir', 'kept']);
  piped.child.stdin.end('rehearse:text from a pipe');
  assert.equal((await piped.ended).code, 0, piped.err);
  const [ignored, kept] = readdirSync(join(suite.dir, 'work/kept')).sort();
  assert.equal(ignored, '.gitignore');
  assert.deepEqual(readdirSync(join(suite.dir, 'work/kept', kept)).sort(), ['home', 'token']);
  assert.match(readFileSync(join(suite.dir, 'work/kept', kept, 'token'), 'utf8'), /^codex:/);
});

test('stopped by a signal: it ends, and leaves nothing running', limit, async () => {
  const stopped = start(['--runtime', 'codex', '--task', 'rehearse:slow']);
  await until('a first word', () => stopped.out !== '');
  stopped.child.kill('SIGINT');
  assert.equal((await stopped.ended).code, 130, stopped.err);
});

test('what cannot be: said, with the exit code for it', limit, async () => {
  const unknown = await run('--resume', 'codex:no-such', '--task', 'x');
  assert.deepEqual([unknown.code, /no run in .* has the token/.test(unknown.err), unknown.out], [64, true, '']);
  mkdirSync(join(suite.dir, 'empty'));
  const { code, err } = await start(['--runtime', 'claude', '--task', 'x'], join(suite.dir, 'empty')).ended;
  assert.equal(code, 69, err);
  assert.match(err, /`claude` was not found on `PATH`\nhint: install it/);
});
