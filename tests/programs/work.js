// Maps, strings, JSON, buffers of all sizes, and workers that pass memory to each other. Prints one line that depends on all of it.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const { createHash } = require('crypto');

function churn(seed) {
  let state = seed >>> 0;
  const next = (limit) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) % limit;
  const hash = createHash('sha256');
  const map = new Map();
  for (let i = 0; i < 40000; i++) {
    map.set(`key${next(5000)}`, { text: 'x'.repeat(next(200)), list: [i, i + 1, { deep: String(i) }] });
    if (i % 7 === 0) map.delete(`key${next(5000)}`);
  }
  hash.update(JSON.stringify([...map.entries()].sort()));
  const kept = [];
  for (let i = 0; i < 3000; i++) {
    const buffer = Buffer.allocUnsafeSlow(1 + next(1 << (4 + next(16)))).fill(i & 255);
    kept[next(64)] = buffer;
    hash.update(kept[next(64)] || 'none');
  }
  return hash.digest('hex');
}

if (isMainThread) {
  const parts = [churn(1)];
  let left = 2;
  for (let n = 0; n < 2; n++) {
    new Worker(__filename, { workerData: n + 2 }).on('message', ({ n: at, text, bytes }) => {
      parts[at] = text + createHash('sha256').update(bytes).digest('hex');
      if (--left === 0) console.log(createHash('sha256').update(parts.join()).digest('hex'));
    });
  }
} else {
  const bytes = new Uint8Array(new ArrayBuffer(8 << 20)).fill(workerData);
  parentPort.postMessage({ n: workerData, text: churn(workerData), bytes }, [bytes.buffer]);
}
