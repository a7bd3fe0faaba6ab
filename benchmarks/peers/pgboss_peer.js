// pg-boss for node_scenes.js.
const { PgBoss } = require('pg-boss');
const { best, kinds, play } = require('./node_scenes.js');

const connectionString = process.env.BENCH_URL;
const producer = { supervise: false, schedule: false };
const fastest = { batchSize: 500, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5, localConcurrency: 2 };
let boss;

async function start(options) {
  boss = new PgBoss({ connectionString, ...options });
  boss.on('error', error => console.error(error.message));
  await boss.start();
}

const stop = () => boss.stop({ graceful: false });

play({
  async prepare() {
    await start({});
    for (const kind of kinds) await boss.createQueue(kind, best ? { notify: true } : {});
    await stop();
  },
  open: () => start(producer),
  one: (kind, data) => boss.send(kind, data),
  many: (kind, rows) => boss.insert(kind, rows.map(data => ({ data }))),
  async work(handlers) {
    await start(best ? { useListenNotify: true } : {});
    for (const [kind, act] of Object.entries(handlers)) {
      await boss.work(kind, best ? fastest : {}, async jobs => jobs.forEach(job => act(job.data)));
    }
  },
  close: stop,
});
