// `outrigger run` with the installed CLIs.

import { after, before } from 'node:test';
import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { Pod, bin, clis, home } from './kit.mjs';

/** Gives the suite that calls this a pod and a home, and a way to run tasks with them. */
export function runsOfSuite() {
  const suite = {};
  before(async () => {
    suite.pod = await Pod.start();
    suite.dir = home();
  });
  after(async () => {
    await suite.pod?.stop();
    rmSync(suite.dir, { recursive: true, force: true, maxRetries: 5 });
  });
  /** Starts one; `ended` becomes what it wrote and its exit code. */
  suite.start = (args, path = `${clis}:${process.env.PATH}`) => {
    const child = spawn(bin, ['run', '--sidecar', `http://127.0.0.1:${suite.pod.port}`, ...args], { cwd: join(suite.dir, 'work'), env: { PATH: path, HOME: suite.dir } });
    const run = { child, out: '', err: '' };
    child.stdout.on('data', (d) => (run.out += d));
    child.stderr.on('data', (d) => (run.err += d));
    run.ended = new Promise((done) => child.once('close', (code) => done(Object.assign(run, { code }))));
    return run;
  };
  suite.run = (...args) => suite.start(args).ended;
  return suite;
}

/** What `--json` wrote. */
export const eventsOf = (out) => out.trimEnd().split('\n').map((line) => JSON.parse(line));
