// `outrigger run`: one task with each real CLI, its outcome as the exit code, and gone on with.

import { after, before, test } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Pod, bin, closedNetwork, home, modules, until } from './kit.mjs';

closedNetwork();
const limit = { timeout: 120_000 };
let pod, dir;
before(async () => {
  pod = await Pod.start();
  dir = home();
});
after(async () => {
  await pod?.stop();
  rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
});

function start(args, path = join(modules, '.bin')) {
  const child = spawn(bin, ['run', '--sidecar', `http://127.0.0.1:${pod.port}`, ...args], { cwd: join(dir, 'work'), env: { PATH: `${path}:${process.env.PATH}`, HOME: dir } });
  const run = { child, out: '', err: '' };
  child.stdout.on('data', (d) => (run.out += d));
  child.stderr.on('data', (d) => (run.err += d));
  run.ended = new Promise((done) => child.once('close', (code) => done(Object.assign(run, { code }))));
  return run;
}
const run = (...args) => start(args).ended;

for (const runtime of ['opencode', 'claude', 'codex', 'gemini', 'pi']) {
  test(`${runtime}: a task, gone on with, and one that fails`, limit, async () => {
    const first = await run('--runtime', runtime, '--task', 'rehearse:shell');
    assert.equal(first.code, 0, first.err);
    assert.match(first.out, /^I will look around first\.\nThe tool said: [^]*rehearsal-was-here/);
    assert.match(first.err, /^\[bash\] echo rehearsal-was-here\n/);
    const token = first.err.match(/--resume (\S+)\n$/)[1];

    const again = await run('--resume', token, '--task', 'rehearse:text again', '--json');
    assert.equal(again.code, 0, again.err);
    const events = again.out.trimEnd().split('\n').map((l) => JSON.parse(l));
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
  const [ignored, kept] = readdirSync(join(dir, 'work/kept')).sort();
  assert.equal(ignored, '.gitignore');
  assert.deepEqual(readdirSync(join(dir, 'work/kept', kept)).sort(), ['home', 'token']);
  assert.match(readFileSync(join(dir, 'work/kept', kept, 'token'), 'utf8'), /^codex:/);
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
  mkdirSync(join(dir, 'empty'));
  const child = spawn(bin, ['run', '--sidecar', `http://127.0.0.1:${pod.port}`, '--runtime', 'claude', '--task', 'x'], { cwd: join(dir, 'work'), env: { PATH: join(dir, 'empty'), HOME: dir } });
  let err = '';
  child.stderr.on('data', (d) => (err += d));
  const code = await new Promise((done) => child.once('close', done));
  assert.equal(code, 69, err);
  assert.match(err, /`claude` was not found on `PATH`\nhint: install it/);
});
