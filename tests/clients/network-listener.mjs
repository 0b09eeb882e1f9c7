// Hears whatever is asked for outside of this machine, while a session runs; prints
// `{attempts, reasons}`. Started by network.test.mjs in a network namespace of its own.

import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';
import { Pod } from './kit.mjs';
import { Session } from './session.mjs';

const attempts = [];
/** The name in a DNS query, and where the query's question ends. */
function question(query) {
  const labels = [];
  let at = 12;
  while (query[at]) {
    labels.push(query.subarray(at + 1, at + 1 + query[at]).toString());
    at += query[at] + 1;
  }
  return { name: labels.join('.'), end: at + 5 };
}

const names = createSocket('udp4').on('message', (query, from) => {
  const { name, end } = question(query);
  attempts.push(`name ${name}`);
  // Every name is 198.51.100.7, so that what would be asked there is heard too.
  const answer = [query.subarray(0, 2), Buffer.from([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]), query.subarray(12, end), Buffer.from([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 7])];
  names.send(Buffer.concat(answer), from.port, from.address);
});
await new Promise((ready) => names.bind(53, '0.0.0.0', ready));
for (const port of [53, 80, 443]) {
  const server = createServer((socket) => {
    attempts.push(`connection ${socket.localAddress}:${port}`);
    socket.destroy();
  });
  await new Promise((ready) => server.listen(port, '0.0.0.0', ready));
}

const runtime = process.argv[2];
const reasons = [];
if (runtime === 'control') {
  await fetch('https://example.com/').catch(() => {});
} else {
  const pod = await Pod.start();
  const session = await Session.start(pod, { runtime });
  await session.ready();
  for (const scene of ['shell', 'reasoning']) reasons.push((await session.turn(`rehearse:${scene}`)).end.reason);
  // What a CLI does in the background, and when it is stopped.
  await new Promise((done) => setTimeout(done, 5000));
  await session.stop();
  await pod.stop();
}
process.stdout.write(JSON.stringify({ attempts, reasons }), () => process.exit());
