// node cache.js PEER PORT COUNT: hits per second of a Node cache's level on Redis, 64 under way;
// prints one number.
const [, , peer, port, countText] = process.argv;
const count = Number(countText);
const value = "seven and ".repeat(10);

async function bentocache() {
  const { BentoCache, bentostore } = await import("bentocache");
  const { redisDriver } = await import("bentocache/drivers/redis");
  const bento = new BentoCache({
    default: "redis",
    stores: { redis: bentostore().useL2Layer(redisDriver({ connection: { host: "127.0.0.1", port: Number(port), enableAutoPipelining: true } })) },
  });
  return {
    set: (key) => bento.set({ key, value, ttl: "1h", tags: ["a", "b", "c"] }),
    get: (key) => bento.get({ key }),
    end: () => bento.disconnectAll(),
  };
}

// It has no tags: a plain entry.
async function cacheManager() {
  const { createCache } = await import("cache-manager");
  const { default: KeyvRedis } = await import("@keyv/redis");
  const { Keyv } = await import("keyv");
  const keyv = new Keyv({ store: new KeyvRedis(`redis://127.0.0.1:${port}`) });
  const cache = createCache({ stores: [keyv] });
  return { set: (key) => cache.set(key, value, 3_600_000), get: (key) => cache.get(key), end: () => keyv.disconnect() };
}

async function main() {
  const cache = await (peer === "bentocache" ? bentocache() : cacheManager());
  for (let n = 0; n < 1000; n++) await cache.set(`key:${n}`);
  const start = process.hrtime.bigint();
  let next = 0;
  await Promise.all(
    Array.from({ length: 64 }, async () => {
      while (next < count) if ((await cache.get(`key:${next++ % 1000}`)) !== value) throw new Error("a miss");
    }),
  );
  console.log(count / (Number(process.hrtime.bigint() - start) / 1e9));
  await cache.end();
}

main();
