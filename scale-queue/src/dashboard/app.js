// Hears of news as server-sent events; where those fail, asks every two seconds, less often while nobody looks. All text goes in as text, never as markup.
"use strict";

const api = location.pathname.replace(/\/$/, "") + "/api/";
const element = (id) => document.getElementById(id);
const history = []; // { at, done, failed }
const FIVE_MINUTES = 300_000;
let shown = null; // the queue whose jobs are listed
let state = "dead"; // which of them
let offset = 0;

function make(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function button(label, action) {
  const node = make("button", label, { type: "button" });
  node.addEventListener("click", async () => {
    node.disabled = true;
    try {
      await action();
    } catch (error) {
      say(error.message, true);
    }
    node.disabled = false;
  });
  return node;
}

function say(text, bad = false) {
  element("state").textContent = text;
  element("state").classList.toggle("bad", bad);
}

async function ask(path, method = "GET") {
  const headers = method === "GET" ? {} : { "x-scale-queue": "dashboard" };
  const response = await fetch(api + path, { method, headers });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `the server answered ${response.status}`);
  return answer;
}

const number = (n) => n.toLocaleString("en");

function time(ms) {
  if (ms < 1_000) return `${ms} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  return `${(ms / 3_600_000).toFixed(1)} h`;
}

function totals(queues) {
  const sum = (field) => queues.reduce((total, queue) => total + queue[field], 0);
  const lag = queues.reduce((most, queue) => Math.max(most, queue.lag_ms), 0);
  const rows = [
    ["waiting", number(sum("waiting"))],
    ["longest lag", time(lag)],
    ["running", number(sum("leased"))],
    ["scheduled", number(sum("scheduled"))],
    ["dead", number(sum("dead"))],
  ];
  element("totals").replaceChildren(
    ...rows.map(([label, value]) => {
      const card = make("div", undefined, { class: "total" });
      card.append(make("b", value), make("span", label));
      return card;
    }),
  );
}

function chart(queues) {
  const sum = (field) => queues.reduce((total, queue) => total + queue[field], 0);
  const now = Date.now();
  history.push({ at: now, done: sum("done_total"), failed: sum("failed_total") });
  while (history[0].at < now - FIVE_MINUTES) history.shift();
  const rates = history.slice(1).map((point, n) => {
    const seconds = (point.at - history[n].at) / 1_000;
    return { at: point.at, done: (point.done - history[n].done) / seconds, failed: (point.failed - history[n].failed) / seconds };
  });
  const most = Math.max(1, ...rates.map((rate) => Math.max(rate.done, rate.failed)));
  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const line = (field) => {
    const place = (rate) => `${600 - ((now - rate.at) / FIVE_MINUTES) * 600},${118 - (Math.max(0, rate[field]) / most) * 104}`;
    return svg("polyline", { class: field, points: rates.map(place).join(" ") });
  };
  element("chart").replaceChildren(line("done"), line("failed"));
  element("chart").setAttribute("aria-label", `Jobs a second; the most was ${number(Math.round(most))}`);
}

function row(queue, writable) {
  const line = make("tr");
  line.classList.toggle("paused", queue.paused);
  const cell = (label, value, late = false) => make("td", value, late ? { "data-label": label, class: "late" } : { "data-label": label });
  line.append(
    make("th", queue.name, { scope: "row" }),
    cell("Waiting", number(queue.waiting)),
    cell("Lag", time(queue.lag_ms), queue.lag_ms > 60_000),
    cell("Running", number(queue.leased)),
    cell("Scheduled", number(queue.scheduled)),
    cell("Dead", number(queue.dead)),
    cell("Done", number(queue.done_total)),
  );
  const actions = make("td");
  actions.append(button("Jobs", () => open(queue.name, queue.dead > 0 ? "dead" : "waiting")), " ");
  if (writable) {
    const verb = queue.paused ? "resume" : "pause";
    actions.append(
      button(queue.paused ? "Resume" : "Pause", async () => {
        await ask(`queues/${queue.name}/${verb}`, "POST");
        await refresh();
      }),
    );
    if (queue.waiting + queue.scheduled > 0) {
      actions.append(
        " ",
        button("Drain", async () => {
          if (!confirm(`Remove all jobs of ${queue.name} that have not begun, for good?`)) return;
          await ask(`queues/${queue.name}/drain`, "POST");
          await refresh();
        }),
      );
    }
  }
  line.append(actions);
  return line;
}

let writable = false;

function show(overview) {
  writable = overview.writable;
  totals(overview.queues);
  chart(overview.queues);
  // A row under the keyboard stays where it is.
  if (!element("queues").contains(document.activeElement)) {
    element("queues").replaceChildren(...overview.queues.map((queue) => row(queue, writable)));
  }
  say(overview.queues.length ? `Live${writable ? "" : ", read-only"}` : "No job was ever pushed");
}

async function refresh() {
  show(await ask("queues"));
}

const STATES = { waiting: "Waiting", leased: "Running", scheduled: "Scheduled", dead: "Dead" };

async function open(queue, which) {
  [shown, state, offset] = [queue, which, 0];
  element("corpses").replaceChildren();
  element("dead-title").textContent = `${STATES[which]} jobs of ${queue}`;
  element("states").replaceChildren(
    ...Object.entries(STATES).flatMap(([name, label]) => {
      const tab = button(label, () => open(queue, name));
      if (name === which) tab.setAttribute("aria-current", "true");
      return [tab, " "];
    }),
  );
  element("dead").hidden = false;
  element("all").hidden = !writable || which !== "dead";
  await older();
  if (!element("corpses").children.length) element("corpses").append(make("p", "None."));
  element("dead").scrollIntoView({ behavior: "smooth" });
}

async function all(fate, question) {
  if (!confirm(question)) return;
  await ask(`queues/${shown}/dead/${fate}`, "POST");
  element("dead").hidden = true;
  await refresh();
}

function card(job) {
  const node = make("article", undefined, { class: "corpse" });
  const attempts = `${job.failed} failed ${job.failed === 1 ? "attempt" : "attempts"}`;
  const when = { dead: job.died_ms, scheduled: job.due_ms }[state] ?? job.pushed_ms;
  const word = { dead: "died", scheduled: "due" }[state] ?? "pushed";
  node.append(make("strong", job.name || "unreadable"), ` · ${attempts} · ${word} ${new Date(when).toLocaleString()}`);
  if (job.worker) node.append(` · ${job.worker}`);
  if (job.progress) {
    const bar = make("progress", undefined, { max: job.progress.total || 1, value: job.progress.done });
    node.append(make("br"), bar, ` ${number(job.progress.done)} of ${number(job.progress.total)} ${job.progress.note}`);
  }
  const error = job.reason ?? job.last_error;
  if (error) node.append(make("p", error, { class: "failed" }));
  node.append(make("pre", job.payload));
  if (writable && job.id) {
    const decide = (label, path, words) =>
      button(label, async () => {
        const { done } = await ask(`queues/${shown}/${path}`, "POST");
        if (done) node.remove();
        say(done ? words : "It is not there any more", !done);
      });
    if (state === "dead") {
      node.append(decide("Try again", `dead/${job.id}/revive`, "It waits again"), " ", decide("Remove", `dead/${job.id}/forget`, "It is gone"));
    } else {
      node.append(decide("Cancel", `jobs/${job.id}/cancel`, "It is cancelled, and lies among the dead or will"));
    }
  }
  return node;
}

async function older() {
  const answer = await ask(`queues/${shown}/${state}?offset=${offset}`);
  const jobs = answer.dead ?? answer.jobs;
  offset += jobs.length;
  element("more").hidden = jobs.length < 50;
  element("corpses").append(...jobs.map(card));
}

element("more").addEventListener("click", () => older().catch((error) => say(error.message, true)));
element("all").append(
  button("Try all again", () => all("revive", `Try all dead jobs of ${shown} again?`)),
  " ",
  button("Remove all", () => all("forget", `Remove all dead jobs of ${shown} for good?`)),
);
element("close").addEventListener("click", () => (element("dead").hidden = true));

async function poll() {
  try {
    await refresh();
  } catch (error) {
    say(error.message, true);
  }
  setTimeout(live, document.hidden ? 15_000 : 2_000);
}

// Each time it ends or fails there is one look by hand, then events again.
function live() {
  if (document.hidden) return poll();
  const events = new EventSource(api + "events");
  const end = (again) => {
    events.close();
    document.removeEventListener("visibilitychange", hidden);
    again();
  };
  const hidden = () => document.hidden && end(poll);
  document.addEventListener("visibilitychange", hidden);
  events.onmessage = (event) => show(JSON.parse(event.data));
  events.addEventListener("failed", (event) => say(event.data, true));
  events.onerror = () => end(poll);
}
live();
