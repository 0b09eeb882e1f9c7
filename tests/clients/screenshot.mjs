// Makes docs/console.png: a real turn of opencode, which finds and mends a mistake, with the model's
// part played from a script. `tests/clients/run.sh --plain screenshot.mjs`

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { launchBrowser } from './browser.mjs';
import { Pod } from './kit.mjs';
import { Session } from './session.mjs';

const bash = (command, description) => ({ name: 'bash', input: { command, description } });
const pod = await Pod.start({
  script: {
    steps: [
      { say: 'I will run the tests first.', tools: [bash('node --test 2>&1 | grep -E "not ok|expected|actual|^# (pass|fail)"', 'Run the tests')] },
      { say: '`sum` subtracts. I will mend it.', tools: [bash('cat sum.mjs', 'Read the function')] },
      { tools: [{ name: 'edit', input: { filePath: 'sum.mjs', oldString: 'a - b', newString: 'a + b' } }] },
      { tools: [bash('node --test 2>&1 | grep -E "not ok|expected|actual|^# (pass|fail)"', 'Run the tests again')] },
      { say: 'The test passes: `sum` subtracted its second argument. One line in sum.mjs is changed.' },
    ],
  },
});
const session = await Session.start(pod, {
  prepare(work) {
    writeFileSync(join(work, 'sum.mjs'), 'export const sum = (a, b) => a - b;\n');
    writeFileSync(join(work, 'sum.test.mjs'), "import { test } from 'node:test';\nimport assert from 'node:assert';\nimport { sum } from './sum.mjs';\ntest('sum', () => assert.equal(sum(2, 3), 5));\n");
  },
});
await session.ready();
await session.turn('The test of sum fails. Please find out why, and mend it.');
const browser = await launchBrowser();
const page = await browser.newPage({ viewport: { width: 900, height: 1100 } });
await page.goto(`http://127.0.0.1:${session.port}/`);
await page.waitForSelector('.usage');
await page.screenshot({ path: join(import.meta.dirname, '../../docs/console.png') });
await browser.close();
await session.stop();
await pod.stop();
