// What idle_peers.py asks of a job system in Node: start workers, wait for a line, run jobs.
const readline = require('node:readline');

exports.play = async ({ start, add }) => {
  const [count, jobs, pause] = process.argv.slice(2).map(Number);
  const waits = [];
  await start(count, data => waits.push(performance.now() - data.at));
  console.log('ready');
  await new Promise(resolve => readline.createInterface(process.stdin).once('line', resolve));
  const began = performance.now();
  for (let n = 0; n < jobs; n++) {
    await add({ at: performance.now() });
    const rest = began + (n + 1) * pause - performance.now();
    await new Promise(resolve => setTimeout(resolve, Math.max(0, rest)));
  }
  while (waits.length < jobs) await new Promise(resolve => setTimeout(resolve, 10));
  console.log(JSON.stringify(waits));
  process.exit(0);
};
