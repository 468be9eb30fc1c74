// node session.js CASE PORT COUNT: requests per second of express-session on Redis, in process, 200
// under way; prints one number.
const express = require("express");
const session = require("express-session");
const { RedisStore } = require("connect-redis");
const { createClient } = require("redis");
const inject = require("light-my-request");

const [, , kind, port, countText] = process.argv;
const count = Number(countText);
const SESSIONS = 1000;
let writes = 0;
const next = () => String(writes++).padStart(30, "0");

async function main() {
  const client = await createClient({ url: `redis://127.0.0.1:${port}` }).connect();
  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  app.use(session({ store: new RedisStore({ client, prefix: "express:", ttl: 7200 }), secret: "bench", resave: false, saveUninitialized: false }));
  app.get("/untouched", (request, response) => response.end("hello"));
  app.get("/read", (request, response) => response.end(request.session.user));
  app.get("/write", (request, response) => {
    const seen = request.session.last;
    request.session.last = next();
    response.end(seen);
  });
  app.get("/begin", (request, response) => {
    Object.assign(request.session, { user: "somebody@example.org", theme: "dark", last: next() });
    response.end("begun");
  });
  const ask = (url, cookie) => inject(app, { method: "GET", url, headers: cookie ? { cookie } : {} });
  const cookies = [];
  for (let n = 0; n < SESSIONS; n++) cookies.push((await ask("/begin")).headers["set-cookie"][0].split(";")[0]);
  const start = process.hrtime.bigint();
  let n = 0;
  await Promise.all(
    Array.from({ length: 200 }, async () => {
      while (n < count) {
        const response = await ask(`/${kind}`, cookies[(n++ * 7919) % SESSIONS]);
        if (response.payload === "") throw new Error("the session was not found");
      }
    }),
  );
  console.log(count / (Number(process.hrtime.bigint() - start) / 1e9));
  client.destroy();
}

main();
