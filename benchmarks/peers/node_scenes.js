// The scenes' halves in Node: node NAME_peer.js worker | prepare | one KIND JOBS | bulk KIND JOBS | paced JOBS EVERY
// Producers print {"clock": seconds, "cpu": seconds}. BENCH_URL, BENCH_BEST and BENCH_NOTES as in setting.py.
// A peer gives { open, one(kind, data), many(kind, rows), work(handlers), close }, and prepare where a database needs it.
const fs = require('fs');

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

const handlers = {
  noop: () => {},
  burn,
  pickup: data => fs.appendFileSync(process.env.BENCH_NOTES, `${(milliseconds() - data.sent).toFixed(4)}\n`),
};

async function one(peer, kind, jobs) {
  await peer.one(kind, payload);
  await timed(async () => {
    for (let i = 1; i < jobs; i++) await peer.one(kind, payload);
  });
}

async function bulk(peer, kind, jobs) {
  await timed(async () => {
    for (let start = 0; start < jobs; start += 1000) {
      await peer.many(kind, Array.from({ length: Math.min(1000, jobs - start) }, () => payload));
    }
  });
}

async function paced(peer, jobs, every) {
  const start = milliseconds();
  for (let i = 0; i < jobs; i++) {
    await pause(Math.max(0, start + i * every * 1000 - milliseconds()));
    await peer.one('pickup', { sent: milliseconds() });
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

async function play(peer, [what, ...words]) {
  if (what === 'worker') return peer.work(handlers);
  if (what === 'prepare') return peer.prepare();
  await peer.open();
  if (what === 'one') await one(peer, words[0], Number(words[1]));
  if (what === 'bulk') await bulk(peer, words[0], Number(words[1]));
  if (what === 'paced') await paced(peer, Number(words[0]), Number(words[1]));
  await peer.close();
}

exports.best = process.env.BENCH_BEST === '1';
exports.kinds = Object.keys(handlers);
exports.play = peer =>
  play(peer, process.argv.slice(2)).catch(error => {
    console.error(error);
    process.exit(1);
  });
