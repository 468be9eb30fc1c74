// Receives updates as server-sent events. If those fail, polls every two seconds, less often while
// the page is hidden.
function show(overview) {
  alive();
  writable = overview.writable;
  sample(overview.queues);
  totals(overview.queues);
  drawAll();
  const [view] = where();
  if (isTable(view) || !view) fill("queues", overview.queues);
  if (view === "batch") openBatch(where()[1]).catch((error) => say(error.message, true));
  if (view !== "queues" && isTable(view)) list(view).catch((error) => say(error.message, true));
  say(`Live${writable ? "" : ", read-only"}`);
}

async function refresh() {
  show(await ask("queues"));
}

async function poll() {
  try {
    await refresh();
  } catch (error) {
    trouble(error.message);
  }
  setTimeout(live, document.hidden ? 15_000 : 2_000);
}

// After each end or failure of the events, polls once, then reconnects.
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
  events.addEventListener("failed", (event) => trouble(event.data));
  events.onerror = () => end(poll);
}

// Shows the view that the address names.
async function route() {
  const [view, queue, state, search] = where();
  const shown = view === "jobs" || view === "batch" || isTable(view) ? view : "queues";
  for (const section of document.querySelectorAll("main > section[data-view]")) section.hidden = section.dataset.view !== shown;
  for (const tab of document.querySelectorAll("header nav a")) {
    if (tab.hash === `#${shown}` || tab.hash === { jobs: "#queues", batch: "#batches" }[shown]) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  document.body.dataset.view = shown;
  await past();
  drawAll();
  if (shown === "jobs") await openJobs(queue, Object.hasOwn(STATES, state) ? state : "waiting", search);
  else if (shown === "batch") await openBatch(queue);
  else if (shown !== "queues") await list(shown);
}

const KEYS = {
  1: () => (location.hash = "queues"),
  2: () => (location.hash = "workers"),
  3: () => (location.hash = "schedules"),
  4: () => (location.hash = "batches"),
  j: () => step(1),
  k: () => step(-1),
  "/": () => element("search").focus(),
  "?": () => element("help").showModal(),
  Escape: () => {
    const back = { jobs: "queues", batch: "batches" }[where()[0]];
    if (back) location.hash = back;
  },
};

// Moves the focus by `by` rows, jobs or links to queues.
function step(by) {
  const rows = [...document.querySelectorAll("main > section:not([hidden]) :is(a.row, details.job > summary)")];
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(rows.length - 1, Math.max(0, at + by))]?.focus();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.ctrlKey || event.metaKey || event.altKey || element("help").open) return;
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

const routed = () => route().catch((error) => say(error.message, true));
addEventListener("hashchange", routed);
// The first answer tells if the dashboard is writable.
refresh().catch((error) => trouble(error.message)).then(routed).then(past).then(live);
