// 100 idle workers of BullMQ for idle_peers.py: WORKERS JOBS MILLISECONDS.
const { Queue, Worker } = require('bullmq');
const { play } = require('./idle_scenes.js');

const url = new URL(process.env.BENCH_URL);
const connection = { host: url.hostname, port: Number(url.port) };
const queue = new Queue('bench', { connection });

play({
  async start(count, note) {
    const workers = [];
    for (let n = 0; n < count; n++) {
      workers.push(new Worker('bench', async job => note(job.data), { connection }));
    }
    await Promise.all(workers.map(worker => worker.waitUntilReady()));
  },
  add: data => queue.add('job', data, { removeOnComplete: true }),
});
