// The real CLIs and the adapter over them, killed again and again while inputs come: none is
// lost, doubled or out of order, and the rules of a stream hold. KILLS and SEED change the run;
// the stand-ins of tests/e2e/fake_lines.rs are killed thousands of times.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';
import { Pod, chosen, closedNetwork } from './kit.mjs';
import { Session } from './session.mjs';

closedNetwork();
const kills = Number(process.env.KILLS ?? 6);

/** Numbers below `n`, the same for the same seed. */
function numbers(seed) {
  let state = seed;
  return (n) => (state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff) % n;
}

for (const runtime of chosen(['opencode', 'claude', 'codex', 'gemini', 'pi'])) {
  test(`${runtime}: ${kills} kills`, { timeout: 60_000 + kills * 30_000 }, async (t) => {
    const random = numbers(Number(process.env.SEED ?? 7));
    const pod = await Pod.start();
    const s = await Session.start(pod, { runtime });
    t.after(() => pod.stop());
    await s.ready();
    const sent = [];
    /** Until it is accepted: the same id again is the same input. */
    const inject = async (text, mode = 'auto') => {
      const input_id = `in-${sent.length}`;
      sent.push(input_id);
      for (;;) {
        const answer = await s.post('/inject', { text, input_id, mode }).catch(() => ({}));
        if (answer.status === 202) return input_id;
        await pause(20);
      }
    };
    for (let i = 0; i < kills; i++) {
      await inject(`rehearse:${['text', 'shell', 'slow', 'nap'][random(4)]} ${i}`);
      if (random(2)) await inject(`rehearse:text also ${i}`);
      await pause(random(900));
      if (random(2)) {
        for (const pid of s.agents()) { try { process.kill(pid, 'SIGKILL'); } catch {} }
      } else {
        s.child.kill('SIGKILL');
        await s.exited;
        await s.subscribed;
        s.spawn();
      }
      // One that is left alone: a CLI that never works again is given up.
      const last = await inject(`rehearse:text and then ${i}`, 'queue');
      await s.rest({ from: 0, id: last }, 60_000);
    }
    const told = s.events.filter((e) => e.type === 'user.message').map((e) => e.payload.input_id);
    assert.deepEqual(told, sent, 'each once, in order');
    assert.equal(await s.stop(), 0);
  });
}
