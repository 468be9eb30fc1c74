// Throughput and lag of all queues or of the open queue: the last five minutes as sampled by this
// page; an hour, a day or 90 days from the history in the store.
const FIVE_MINUTES = 300;
const SPANS = { live: FIVE_MINUTES, hour: 3_600, day: 86_400, "90 days": 90 * 86_400 };
let span = "live";
let kept = null; // { of, span, step, queues: Map of name to samples }
const MOST_LINES = 6;
const samples = []; // { at, queues: Map of name to row }
const charts = {};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const day = (at) => new Date(at * 1_000).toLocaleDateString([], { month: "short", day: "numeric" });
const clock = (at) => span === "90 days" ? day(at) : span === "day" || span === "hour" ? new Date(at * 1_000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : seconds(at);
const seconds = (at) => new Date(at * 1_000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function sample(queues) {
  const at = Date.now() / 1_000;
  // Samples less than a second apart give no rate per second.
  if (samples.length && at - samples[samples.length - 1].at < 1) return;
  samples.push({ at, queues: new Map(queues.map((queue) => [queue.name, queue])) });
  while (samples[0].at < at - FIVE_MINUTES) samples.shift();
}

// Jobs per second between each two adjacent samples.
function rates(field, names, samples) {
  const sum = (of) => names.reduce((total, name) => total + (of.queues.get(name)?.[field] ?? 0), 0);
  return samples.slice(1).map((now, n) => Math.max(0, (sum(now) - sum(samples[n])) / (now.at - samples[n].at)));
}

// Samples to show: taken by this page, or from the history in the store.
function shownSamples(names) {
  if (span === "live" || !kept) return samples;
  const times = new Map();
  for (const name of names) {
    for (const one of kept.queues.get(name) ?? []) {
      const at = one.at_ms / 1_000;
      if (!times.has(at)) times.set(at, { at, queues: new Map() });
      times.get(at).queues.set(name, one);
    }
  }
  const from = Date.now() / 1_000 - SPANS[span];
  return [...times.values()].filter((one) => one.at >= from).sort((a, b) => a.at - b.at);
}

function throughput(names, shown) {
  const at = shown.slice(1).map((one) => one.at);
  const lines = [
    { label: "pushed", stroke: "--line-1" },
    { label: "done", stroke: "--done" },
    { label: "failed", stroke: "--failed" },
  ];
  const data = ["pushed_total", "done_total", "failed_total"].map((field) => rates(field, names, shown));
  draw("throughput", 5, lines, [at, ...data], (n) => (n < 10 && n % 1 ? n.toFixed(1) : number(Math.round(n))));
}

function lag(names, shown) {
  const last = shown[shown.length - 1].queues;
  const latest = [...names].sort((a, b) => (last.get(b)?.lag_ms ?? 0) - (last.get(a)?.lag_ms ?? 0));
  const named = latest.slice(0, MOST_LINES).sort();
  const lines = named.map((label, n) => ({ label, stroke: `--line-${n + 1}` }));
  const values = named.map((name) => shown.map((one) => one.queues.get(name)?.lag_ms ?? null));
  draw("lag", 10, lines, [shown.map((one) => one.at), ...values], time);
}

// Loads the history from the store if the selected time span needs it.
async function past() {
  const [view, open] = where();
  const of = view === "jobs" ? open : "";
  if (span === "live" || (kept?.of === of && kept.span === span && Date.now() - kept.asked < 60_000)) return;
  const by = span === "90 days" ? "hour" : "minute";
  const answer = await ask(`history?by=${by}${of ? `&queue=${encodeURIComponent(of)}` : ""}`);
  kept = { of, span, asked: Date.now(), queues: new Map(answer.queues.map((queue) => [queue.name, queue.samples])) };
}

// `least` is the minimum of the upper end of the scale.
function draw(id, least, lines, data, words) {
  const place = element(id);
  const key = [span, ...lines.map((line) => line.label)].join("\n");
  const known = charts[id];
  if (known?.key === key) {
    known.chart.setData(data);
    return;
  }
  known?.chart.destroy();
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui" };
  const options = {
    width: place.clientWidth,
    height: 180,
    padding: [8, 24, 0, 0],
    cursor: { points: { size: 6 }, drag: { x: false, y: false } },
    scales: {
      x: { range: (_, __, max) => [max - SPANS[span], max] },
      y: { range: (_, __, max) => [0, Math.max(least, max * 1.1)] },
    },
    axes: [{ ...axis, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 70, values: (_, ticks) => ticks.map(words) }],
    series: [
      { label: "at", value: (_, at) => (at === null ? "" : clock(at)) },
      ...lines.map(({ label, stroke }) => ({ label, stroke: colour(stroke), width: 2, points: { show: false }, value: (_, n) => (n === null ? "" : words(n)) })),
    ],
  };
  place.replaceChildren();
  charts[id] = { key, chart: new uPlot(options, data, place) };
}

function drawAll() {
  const [view, open] = where();
  const last = samples[samples.length - 1];
  if (!last) return;
  const names = view === "jobs" ? [open] : [...last.queues.keys()];
  element("of").textContent = view === "jobs" ? `, ${visible(open)}` : "";
  const shown = shownSamples(names);
  element("no-history").hidden = shown.length >= 2;
  if (shown.length < 2) return;
  throughput(names, shown);
  lag(names, shown);
}

element("spans").append(
  ...Object.keys(SPANS).map((name) => {
    const choice = make("button", name, { type: "button", "aria-pressed": name === span });
    choice.addEventListener("click", async () => {
      span = name;
      for (const other of element("spans").children) other.setAttribute("aria-pressed", other === choice);
      await past().catch((error) => say(error.message, true));
      drawAll();
    });
    return choice;
  }),
);

// Colours are read only when a chart is created.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const one of Object.values(charts)) one.key = undefined;
  drawAll();
});
new ResizeObserver(() => {
  for (const [id, { chart }] of Object.entries(charts)) chart.setSize({ width: element(id).clientWidth, height: 180 });
}).observe(document.querySelector("main"));
