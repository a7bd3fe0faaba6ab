// Graphile Worker for node_scenes.js.
const { Logger, makeWorkerUtils, run, runMigrations } = require('graphile-worker');
const { best, play } = require('./node_scenes.js');

const logger = new Logger(() => () => {});
const connectionString = process.env.BENCH_URL;
const fastest = {
  concurrentJobs: 24,
  maxPoolSize: 20,
  localQueue: { size: 2000 },
  completeJobBatchDelay: 50,
  failJobBatchDelay: 50,
};
let utilities;

play({
  prepare: () => runMigrations({ connectionString, logger }),
  async open() {
    utilities = await makeWorkerUtils({ connectionString, logger });
  },
  one: (kind, data) => utilities.addJob(kind, data),
  many: (kind, rows) => utilities.addJobs(rows.map(payload => ({ identifier: kind, payload }))),
  work: handlers =>
    run({
      preset: { worker: { connectionString, logger, ...(best ? fastest : {}) } },
      taskList: Object.fromEntries(
        Object.entries(handlers).map(([kind, act]) => [kind, async data => act(data)]),
      ),
    }),
  close: () => utilities.release(),
});
