// BullMQ for node_scenes.js.
const { Queue, Worker } = require('bullmq');
const { best, play } = require('./node_scenes.js');

const url = new URL(process.env.BENCH_URL);
const connection = { host: url.hostname, port: Number(url.port) };
const policy = best ? { removeOnComplete: true } : {};
let queue;

play({
  async open() {
    queue = new Queue('bench', { connection });
    await queue.waitUntilReady();
  },
  one: (kind, data) => queue.add(kind, data, policy),
  many: (kind, rows) => queue.addBulk(rows.map(data => ({ name: kind, data, opts: policy }))),
  work(handlers) {
    const options = best ? { connection, concurrency: 100 } : { connection };
    const worker = new Worker('bench', async job => handlers[job.name](job.data), options);
    worker.on('error', error => console.error(error.message));
  },
  close: () => queue.close(),
});
