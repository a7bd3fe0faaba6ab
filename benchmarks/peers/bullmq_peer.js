// BullMQ's half of the scenes: node bullmq_peer.js worker | one KIND JOBS | bulk KIND JOBS | paced JOBS EVERY
// Producers print {"clock": seconds, "cpu": seconds}. BENCH_URL, BENCH_BEST and BENCH_NOTES as in setting.py.
const fs = require('fs');
const { Queue, Worker } = require('bullmq');

const url = new URL(process.env.BENCH_URL);
const connection = { host: url.hostname, port: Number(url.port) };
const best = process.env.BENCH_BEST === '1';
const policy = best ? { removeOnComplete: true } : {};
const payload = JSON.parse(process.env.BENCH_PAYLOAD || '{}');
const milliseconds = () => Number(process.hrtime.bigint()) / 1e6; // CLOCK_MONOTONIC, as time.monotonic()
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));

function burn() {
  const start = process.cpuUsage();
  for (;;) {
    const used = process.cpuUsage(start);
    if (used.user + used.system >= 1000) return;
  }
}

function work() {
  const handlers = {
    noop: () => {},
    burn,
    pickup: job => fs.appendFileSync(process.env.BENCH_NOTES, `${(milliseconds() - job.data.sent).toFixed(4)}\n`),
  };
  const options = best ? { connection, concurrency: 100 } : { connection };
  const worker = new Worker('bench', async job => handlers[job.name](job), options);
  worker.on('error', error => console.error(error.message));
}

async function one(queue, kind, jobs) {
  await queue.add(kind, payload, policy);
  await timed(async () => {
    for (let i = 1; i < jobs; i++) await queue.add(kind, payload, policy);
  });
}

async function bulk(queue, kind, jobs) {
  await timed(async () => {
    for (let start = 0; start < jobs; start += 1000) {
      const many = { length: Math.min(1000, jobs - start) };
      await queue.addBulk(Array.from(many, () => ({ name: kind, data: payload, opts: policy })));
    }
  });
}

async function paced(queue, jobs, every) {
  const start = milliseconds();
  for (let i = 0; i < jobs; i++) {
    await pause(Math.max(0, start + i * every * 1000 - milliseconds()));
    await queue.add('pickup', { sent: milliseconds() }, policy);
  }
}

async function timed(act) {
  const cpu = process.cpuUsage();
  const start = milliseconds();
  await act();
  const clock = (milliseconds() - start) / 1000;
  const used = process.cpuUsage(cpu);
  console.log(JSON.stringify({ clock, cpu: (used.user + used.system) / 1e6 }));
}

async function main([what, ...words]) {
  if (what === 'worker') return work();
  const queue = new Queue('bench', { connection });
  await queue.waitUntilReady();
  if (what === 'one') await one(queue, words[0], Number(words[1]));
  if (what === 'bulk') await bulk(queue, words[0], Number(words[1]));
  if (what === 'paced') await paced(queue, Number(words[0]), Number(words[1]));
  await queue.close();
}

main(process.argv.slice(2));
