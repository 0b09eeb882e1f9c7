// No request of any CLI reaches anything but the sidecar. In a network namespace where every
// address is this machine's own, so that whatever is asked for is heard: names on port 53,
// connections on 80 and 443.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';

const heard = (...args) => new Promise((done, failed) => {
  const inside = `ip link set lo up && ip route add local default dev lo && exec node "$@"`;
  const child = spawn('unshare', ['--net', 'sh', '-c', inside, 'sh', join(import.meta.dirname, 'network-listener.mjs'), ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  let out = '';
  child.stdout.on('data', (d) => (out += d));
  child.once('exit', (code) => (code === 0 ? done(JSON.parse(out)) : failed(new Error(`${code} ${out}`))));
});

test('the listener hears what is asked for elsewhere', { timeout: 60_000 }, async () => {
  const { attempts } = await heard('control');
  assert.ok(attempts.some((a) => a === 'name example.com') && attempts.some((a) => /^connection .*:443$/.test(a)), JSON.stringify(attempts));
});

for (const runtime of ['opencode', 'claude', 'codex', 'gemini', 'pi']) {
  test(`${runtime} asks for nothing but the sidecar`, { timeout: 120_000 }, async () => {
    const { attempts, reasons } = await heard(runtime);
    assert.deepEqual(reasons, ['end_turn', 'end_turn'], 'it worked all the same');
    assert.deepEqual(attempts, []);
  });
}
