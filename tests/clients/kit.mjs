// A rehearsal and a sidecar on loopback, started from the built binary, and processes with
// an environment made from nothing. Must run in a network namespace that has loopback only.

import { spawn } from 'node:child_process';
import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync, renameSync } from 'node:fs';
import { createServer } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as pause } from 'node:timers/promises';

const here = dirname(fileURLToPath(import.meta.url));
export const bin = process.env.OUTRIGGER ?? join(here, '../../target/debug/outrigger');
export const modules = join(here, 'node_modules');
/** Where the CLIs are: CLIS names another directory, with other versions (see drift.sh). */
export const clis = process.env.CLIS ?? join(modules, '.bin');
export const KEY = 'sk-canary-5a1c93-only-the-sidecar-has-this';

/** Refuses to start a client where it could reach anything but this machine. */
export function closedNetwork() {
  const open = Object.keys(networkInterfaces()).filter((name) => name !== 'lo');
  if (open.length) throw new Error(`not in a closed network (${open}); run tests/clients/run.sh`);
}

/** Those of `all` that RUNTIMES names, by comma; without it all. */
export function chosen(all) {
  const names = process.env.RUNTIMES?.split(',');
  return all.filter((name) => !names || names.includes(name));
}

export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((ready) => server.once('listening', ready));
  const { port } = server.address();
  await new Promise((closed) => server.close(closed));
  return port;
}

/** The first of so many free ports in a row. */
export async function freePorts(count) {
  for (;;) {
    const first = await freePort();
    const free = async (port) => {
      const server = createServer();
      const ok = await new Promise((done) => server.once('error', () => done(false)).listen(port, '127.0.0.1', () => done(true)));
      if (ok) await new Promise((closed) => server.close(closed));
      return ok;
    };
    const all = [];
    for (let i = 0; i < count; i++) all.push(first + i < 65_536 && (await free(first + i)));
    if (all.every(Boolean)) return first;
  }
}

export async function until(what, holds, patience = 20_000) {
  const end = Date.now() + patience;
  for (;;) {
    const value = await holds();
    if (value) return value;
    if (Date.now() > end) throw new Error(`${what}: not within ${patience} ms`);
    await pause(10);
  }
}

export class Pod {
  /** `provider`: a provider of the test's own instead of the rehearsal. `token`: what clients must present. */
  static async start({ grants = '[{scope: ai.anthropic}, {scope: ai.openai}, {scope: ai.google}]', script, provider, token } = {}) {
    const pod = new Pod();
    pod.provider = provider;
    pod.dir = mkdtempSync(join(tmpdir(), 'outrigger-pod-'));
    pod.children = [];
    [pod.port, pod.admin, pod.upstream] = [await freePort(), await freePort(), await freePort()];
    mkdirSync(join(pod.dir, 'secrets/all'), { recursive: true });
    writeFileSync(join(pod.dir, 'secrets/all/key'), KEY);
    if (token) writeFileSync((pod.tokenFile = join(pod.dir, 'token')), token);
    pod.grant(grants);
    const scripted = script ? ['--script', join(pod.dir, 'script.json')] : [];
    if (script) writeFileSync(scripted[1], JSON.stringify(script));
    pod.run(bin, ['rehearse', '--listen', `127.0.0.1:${pod.upstream}`, '--log', join(pod.dir, 'rehearsal.jsonl'), ...scripted]);
    pod.run(bin, ['sidecar', '--config', join(pod.dir, 'sidecar.yaml'), '--session-id', 'ses_clients']);
    await until('the sidecar', () => fetch(`http://127.0.0.1:${pod.admin}/readyz`).then((r) => r.ok, () => false));
    return pod;
  }

  grant(grants) {
    const provider = this.provider ?? `http://127.0.0.1:${this.upstream}`;
    const at = (path) => `{ baseUrl: "${provider}${path}", secretRef: { name: all, key: key } }`;
    const yaml = `listen: 127.0.0.1:${this.port}
admin: 127.0.0.1:${this.admin}
secretsDir: ${this.dir}/secrets
audit: { file: ${this.dir}/audit.jsonl }
${this.tokenFile ? `tokenFile: ${this.tokenFile}` : ''}
aiProviders: { anthropic: ${at('')}, openai: ${at('/v1')}, google: ${at('')} }
permissionGrants: ${grants}
`;
    writeFileSync(join(this.dir, 'new.yaml'), yaml);
    renameSync(join(this.dir, 'new.yaml'), join(this.dir, 'sidecar.yaml'));
  }

  run(command, args) {
    const child = spawn(command, args, { env: {}, stdio: 'ignore' });
    this.children.push(child);
    return child;
  }

  get url() {
    return `http://localhost:${this.port}`;
  }

  lines(name) {
    try {
      return readFileSync(join(this.dir, name), 'utf8').split('\n').filter(Boolean).map((l) => JSON.parse(l));
    } catch {
      return [];
    }
  }

  /** The audit records of inferences, once there are as many as requests that went upstream or `count`. */
  async audit(count = 1) {
    const calls = () => this.lines('audit.jsonl').filter((r) => r.endpoint && !['probe', 'models', 'model'].includes(r.endpoint));
    await until(`${count} audit records`, () => calls().length >= count);
    await until('the records of all upstream requests', () => calls().filter((r) => r.decision === 'allow').length >= this.lines('rehearsal.jsonl').filter((r) => r.method === 'POST').length);
    return calls();
  }

  async stop() {
    for (const child of this.children) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const gone = new Promise((done) => child.once('exit', done));
      child.kill('SIGTERM');
      await gone;
    }
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Runs an installed client to its end, with nothing of this machine's environment. */
export function client(name, args, options) {
  return program(join(modules, '.bin', name), args, options);
}

/** The same of any program. */
export function program(path, args, { home, env = {}, cwd = home, timeout = 60_000 }) {
  const child = spawn(path, args, {
    cwd,
    env: { PATH: process.env.PATH, HOME: home, TERM: 'xterm-256color', COLORTERM: 'truecolor', LANG: 'C.UTF-8', USER: 'agent', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  const started = Date.now();
  let out = '';
  child.stdout.on('data', (d) => (out += d));
  child.stderr.on('data', (d) => (out += d));
  const killer = setTimeout(() => { try { process.kill(-child.pid, 'SIGKILL'); } catch {} }, timeout);
  return new Promise((done) => {
    child.once('close', (code, signal) => {
      clearTimeout(killer);
      done({ code, signal, out, ms: Date.now() - started, ended: Date.now() });
    });
  });
}

export function home() {
  const dir = mkdtempSync(join(tmpdir(), 'outrigger-home-'));
  mkdirSync(join(dir, 'work'));
  return dir;
}
