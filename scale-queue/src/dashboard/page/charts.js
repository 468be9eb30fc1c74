// Throughput and lag of the last five minutes, of all queues or of the one that is open.
const FIVE_MINUTES = 300;
const MOST_LINES = 6;
const samples = []; // { at, queues: Map of name to row }
const charts = {};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const clock = (at) => new Date(at * 1_000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function sample(queues) {
  const at = Date.now() / 1_000;
  // Two looks in one moment say nothing about a second.
  if (samples.length && at - samples[samples.length - 1].at < 1) return;
  samples.push({ at, queues: new Map(queues.map((queue) => [queue.name, queue])) });
  while (samples[0].at < at - FIVE_MINUTES) samples.shift();
}

// Jobs a second between two samples.
function rates(field, names) {
  const sum = (of) => names.reduce((total, name) => total + (of.queues.get(name)?.[field] ?? 0), 0);
  return samples.slice(1).map((now, n) => Math.max(0, (sum(now) - sum(samples[n])) / (now.at - samples[n].at)));
}

function throughput(names) {
  const at = samples.slice(1).map((one) => one.at);
  const lines = [
    { label: "done", stroke: "--done" },
    { label: "failed", stroke: "--failed" },
  ];
  draw("throughput", 5, lines, [at, rates("done_total", names), rates("failed_total", names)], (n) => number(Math.round(n)));
}

function lag(names) {
  const last = samples[samples.length - 1].queues;
  const latest = [...names].sort((a, b) => (last.get(b)?.lag_ms ?? 0) - (last.get(a)?.lag_ms ?? 0));
  const shown = latest.slice(0, MOST_LINES).sort();
  const lines = shown.map((label, n) => ({ label, stroke: `--line-${n + 1}` }));
  const values = shown.map((name) => samples.map((one) => one.queues.get(name)?.lag_ms ?? 0));
  draw("lag", 10, lines, [samples.map((one) => one.at), ...values], time);
}

// `least` is what the upper end of the scale shows at the least.
function draw(id, least, lines, data, words) {
  const place = element(id);
  const key = lines.map((line) => line.label).join("\n");
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
    cursor: { points: { size: 6 }, drag: { x: false, y: false } },
    scales: {
      x: { range: (_, __, max) => [max - FIVE_MINUTES, max] },
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
  if (samples.length < 2) return;
  const [view, open] = where();
  const names = view === "jobs" ? [open] : [...samples[samples.length - 1].queues.keys()];
  element("of").textContent = view === "jobs" ? `, ${open}` : "";
  throughput(names);
  lag(names);
}

// Colours are read once a chart is made.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const one of Object.values(charts)) one.key = undefined;
  drawAll();
});
new ResizeObserver(() => {
  for (const [id, { chart }] of Object.entries(charts)) chart.setSize({ width: element(id).clientWidth, height: 180 });
}).observe(document.querySelector("main"));
