// node bullmq.js CASE PORT COUNT: prints one number.
const { Queue, Worker } = require("bullmq");
const Redis = require("ioredis");

const [, , what, port, countText] = process.argv;
const count = Number(countText);
const connection = { host: "127.0.0.1", port: Number(port), maxRetriesPerRequest: null };
const data = (n) => ({ n, text: "a payload of about a hundred bytes, which is what most jobs carry around" });
const opts = { removeOnComplete: true, removeOnFail: true };
const seconds = (start) => Number(process.hrtime.bigint() - start) / 1e9;

async function bulk(queue) {
  for (let from = 0; from < count; from += 1000) {
    await queue.addBulk(Array.from({ length: Math.min(1000, count - from) }, (_, i) => ({ name: "small", data: data(from + i), opts })));
  }
}

async function main() {
  const admin = new Redis(connection);
  await admin.flushall();
  const queue = new Queue("bench", { connection });
  await queue.waitUntilReady();
  let answer;
  if (what === "push_bulk") {
    const start = process.hrtime.bigint();
    await bulk(queue);
    answer = count / seconds(start);
  } else if (what === "push_one") {
    const start = process.hrtime.bigint();
    await Promise.all(
      Array.from({ length: 100 }, async () => {
        for (let n = 0; n < count / 100; n++) await queue.add("small", data(n), opts);
      }),
    );
    answer = count / seconds(start);
  } else if (what === "process") {
    await bulk(queue);
    answer = await new Promise((resolve) => {
      let done = 0;
      const start = process.hrtime.bigint();
      const worker = new Worker(
        "bench",
        async (job) => {
          if (job.data.n + job.data.text.length < 0) throw new Error();
          if (++done === count) resolve(count / seconds(start));
        },
        { connection, concurrency: 100 },
      );
      worker.on("error", (error) => console.error(error));
    });
  } else if (what === "pickup_p99") {
    let heard;
    const worker = new Worker("bench", async () => heard(process.hrtime.bigint()), { connection });
    await worker.waitUntilReady();
    const times = [];
    for (let n = 0; n < count; n++) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      const begun = new Promise((resolve) => (heard = resolve));
      const start = process.hrtime.bigint();
      await queue.add("small", data(n), opts);
      times.push(Number((await begun) - start) / 1e6);
    }
    times.sort((a, b) => a - b);
    answer = times[Math.floor((times.length - 1) * 0.99)];
  }
  console.log(answer);
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
