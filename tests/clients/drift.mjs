// Runs the tests of one runtime (RUNTIMES) with the CLIs of another place (CLIS), and prints only
// what does not hold there: see drift.sh.

import { join } from 'node:path';
import { run } from 'node:test';

const [runtime, version] = process.argv.slice(2);
const files = ['runtimes', 'permissions', 'kills'].map((name) => join(import.meta.dirname, `${name}.test.mjs`));
let passed = 0;
const failures = [];

/** Why a test failed, without the frames of the runner. */
function reason(error) {
  const cause = error.cause ?? error;
  return String(cause.message ?? cause).split('\n').slice(0, 30).join('\n').replaceAll(/^/gm, '    ');
}

for await (const { type, data } of run({ files, concurrency: false })) {
  const isSuite = data.details?.type === 'suite';
  if (type === 'test:pass' && !isSuite && !data.skip) passed++;
  // A suite fails with its tests; it is named only where a hook of its own failed.
  if (type === 'test:fail' && !(isSuite && data.details.error.failureType === 'subtestsFailed')) failures.push(data);
}
for (const { name, details } of failures) console.log(`differs: ${name}\n${reason(details.error)}\n`);
console.log(`${runtime} ${version}: ${passed} scenarios are as with the pinned version, ${failures.length} differ`);
process.exitCode = failures.length ? 1 : 0;
