// Tables of queues, workers, schedules and batches.
let writable = false;

function totals(queues) {
  const sum = (field) => queues.reduce((total, queue) => total + queue[field], 0);
  const late = queues.reduce((most, queue) => Math.max(most, queue.lag_ms), 0);
  const rows = [
    ["waiting", number(sum("waiting"))],
    ["longest lag", time(late)],
    ["running", number(sum("leased"))],
    ["scheduled", number(sum("scheduled"))],
    ["blocked", number(sum("blocked"))],
    ["dead", number(sum("dead"))],
  ];
  element("totals").replaceChildren(
    ...rows.map(([label, value]) => {
      const total = make("div", undefined, { class: "total" });
      total.append(make("b", value), make("span", label));
      return total;
    }),
  );
}

function queueRow(queue) {
  const line = make("tr");
  line.classList.toggle("paused", queue.paused);
  const name = make("th", undefined, { scope: "row" });
  name.append(make("a", queue.name, { href: address("jobs", queue.name, queue.dead > 0 ? "dead" : "waiting"), class: "row" }));
  const link = (state, count) => (count ? make("a", number(count), { href: address("jobs", queue.name, state) }) : "0");
  line.append(
    name,
    ...cells(
      ["Waiting", link("waiting", queue.waiting)],
      ["Lag", time(queue.lag_ms), queue.lag_ms > 60_000 && "late"],
      ["Running", link("leased", queue.leased)],
      ["Scheduled", link("scheduled", queue.scheduled)],
      ["Blocked", link("blocked", queue.blocked)],
      ["Dead", link("dead", queue.dead)],
      ["Done", number(queue.done_total)],
    ),
  );
  const actions = make("td");
  if (writable) {
    const post = async (verb) => {
      await ask(`queues/${encodeURIComponent(queue.name)}/${verb}`, "POST");
      await refresh();
    };
    actions.append(button(queue.paused ? "Resume" : "Pause", () => post(queue.paused ? "resume" : "pause")));
    if (queue.waiting + queue.scheduled > 0) {
      const question = `Permanently remove all jobs of ${queue.name} that have not started?`;
      actions.append(button("Drain", async () => confirm(question) && (await post("drain"))));
    }
  }
  line.append(actions);
  return line;
}

function workerRow(worker) {
  const line = make("tr");
  line.append(
    make("th", worker.id, { scope: "row" }),
    ...cells(
      ["Queues", worker.queues.join(", ")],
      ["Running", `${number(worker.running)} of ${number(worker.concurrency)}`],
      ["Process", String(worker.process)],
      ["Began", moment(worker.started_ms)],
    ),
  );
  line.classList.toggle("paused", worker.quiet);
  const actions = make("td", worker.quiet ? "quiet " : undefined);
  if (writable) {
    const verb = worker.quiet ? "resume" : "quiet";
    actions.append(
      button(worker.quiet ? "Resume" : "Quiet", async () => {
        await ask(`workers/${encodeURIComponent(worker.id)}/${verb}`, "POST");
        await list("workers");
      }),
    );
  }
  line.append(actions);
  return line;
}

function scheduleRow(schedule) {
  const line = make("tr");
  line.append(
    make("th", schedule.name, { scope: "row" }),
    ...cells(
      ["When", schedule.rule],
      ["Job", schedule.job],
      ["Queue", schedule.queue],
      ["Next", schedule.paused ? "paused" : schedule.next_ms > Date.now() ? moment(schedule.next_ms) : "now"],
    ),
  );
  line.classList.toggle("paused", schedule.paused);
  const actions = make("td");
  if (writable) {
    const post = async (verb) => {
      await ask(`schedules/${encodeURIComponent(schedule.name)}/${verb}`, "POST");
      await list("schedules");
    };
    actions.append(button(schedule.paused ? "Resume" : "Pause", () => post(schedule.paused ? "resume" : "pause")));
    actions.append(button("Run now", () => post("run")));
  }
  line.append(actions);
  return line;
}

function batchRow(batch) {
  const line = make("tr");
  const ended = batch.done + batch.dead;
  const name = make("th", undefined, { scope: "row" });
  name.append(make("a", batch.id, { href: address("batch", batch.id), class: "row" }));
  const bar = make("progress", undefined, { max: batch.total, value: ended, "aria-label": "Progress" });
  line.append(
    name,
    ...cells(
      ["Progress", bar],
      ["Done", `${number(batch.done)} of ${number(batch.total)}`],
      ["Dead", number(batch.dead), batch.dead > 0 && "late"],
      ["Pushed", moment(batch.pushed_ms)],
    ),
  );
  const actions = make("td", batch.cancelled ? "cancelled" : undefined);
  if (writable && !batch.cancelled && ended < batch.total) {
    actions.append(
      button("Cancel", async () => {
        if (!confirm(`Cancel the batch ${batch.id}? Jobs that have not started will not run.`)) return;
        await ask(`batches/${encodeURIComponent(batch.id)}/cancel`, "POST");
        await list("batches");
      }),
    );
  }
  line.append(actions);
  return line;
}

const isTable = (view) => Object.hasOwn(ROWS, view);
const ROWS = { queues: queueRow, workers: workerRow, schedules: scheduleRow, batches: batchRow };

// Replaces the rows. The keyboard focus is kept: found again by name of row and position in it.
function fill(view, rows) {
  const body = element(`${view}-rows`);
  const focused = body.contains(document.activeElement) ? document.activeElement : null;
  const row = focused?.closest("tr");
  const name = row?.querySelector("th")?.textContent;
  const place = row ? [...row.querySelectorAll("a, button")].indexOf(focused) : -1;
  body.replaceChildren(...rows.map(ROWS[view]));
  if (name !== undefined) {
    const again = [...body.rows].find((line) => line.querySelector("th")?.textContent === name);
    [...(again?.querySelectorAll("a, button") ?? [])][place]?.focus({ preventScroll: true });
  }
  element(`${view}-none`).hidden = rows.length > 0;
}

async function list(view) {
  fill(view, (await ask(view))[view]);
}
