// 100 idle runners of Graphile Worker for idle_peers.py: WORKERS JOBS MILLISECONDS.
const { Logger, makeWorkerUtils, run, runMigrations } = require('graphile-worker');
const { play } = require('./idle_scenes.js');

const logger = new Logger(() => () => {});
const connectionString = process.env.BENCH_URL;
let utilities;

play({
  async start(count, note) {
    await runMigrations({ connectionString, logger });
    utilities = await makeWorkerUtils({ connectionString, logger });
    const preset = {
      worker: { connectionString, logger, concurrentJobs: 1, maxPoolSize: 2 },
    };
    for (let n = 0; n < count; n++) {
      await run({ preset, taskList: { job: async data => note(data) }, noHandleSignals: true });
    }
  },
  add: data => utilities.addJob('job', data),
});
