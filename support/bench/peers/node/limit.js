// node limit.js PORT COUNT: checks per second of rate-limiter-flexible on Redis, 200 under way;
// prints one number.
const { RateLimiterRedis } = require("rate-limiter-flexible");
const Redis = require("ioredis");

const [, , port, countText] = process.argv;
const count = Number(countText);

async function main() {
  const redis = new Redis({ host: "127.0.0.1", port: Number(port), enableAutoPipelining: true });
  const limiter = new RateLimiterRedis({ storeClient: redis, points: 1_000_000, duration: 60, keyPrefix: "flexible" });
  const start = process.hrtime.bigint();
  let next = 0;
  await Promise.all(
    Array.from({ length: 200 }, async () => {
      while (next < count) await limiter.consume(`user:${next++ % 1000}`);
    }),
  );
  console.log(count / (Number(process.hrtime.bigint() - start) / 1e9));
  await redis.quit();
}

main();
