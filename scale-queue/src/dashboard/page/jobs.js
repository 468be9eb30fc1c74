// Jobs of one queue by state, with a search; each job can be opened.
const STATES = { waiting: "Waiting", leased: "Running", scheduled: "Scheduled", blocked: "Blocked", dead: "Dead", ended: "Ended" };
let listing = 0; // number of the current listing: late answers to earlier listings are dropped
let next = null;

async function openJobs(queue, state, search = "") {
  listing += 1;
  next = 0;
  element("jobs-title").textContent = queue;
  element("search").value = search;
  element("search").placeholder = state === "ended" ? "A tag, exactly" : "Id, name, tag, payload, reason";
  element("states").replaceChildren(
    ...Object.entries(STATES).map(([name, label]) => {
      const tab = make("a", label, { href: address("jobs", queue, name) });
      if (name === state) tab.setAttribute("aria-current", "page");
      return tab;
    }),
  );
  element("all").hidden = !writable || state !== "dead";
  element("list").replaceChildren();
  await more();
}

async function more() {
  const mine = listing;
  const [, queue, state, search = ""] = where();
  element("more").hidden = true;
  const answer = await ask(`queues/${encodeURIComponent(queue)}/${state}?offset=${next}&search=${encodeURIComponent(search)}`);
  if (mine !== listing) return;
  next = answer.next;
  element("list").append(...answer.jobs.map((job) => card(queue, state, job)));
  element("more").hidden = next === null;
  element("more").textContent = search ? `Continue the search after ${number(next ?? 0)} jobs` : "More";
  const empty = next === null && !element("list").children.length;
  element("none").hidden = !empty;
  element("none").textContent = search ? "No job matches." : state === "ended" ? "No jobs: a worker keeps ended jobs if asked to." : "No jobs.";
}

function pretty(payload) {
  try {
    return JSON.stringify(JSON.parse(payload), null, 2);
  } catch {
    return payload;
  }
}

function card(queue, state, job) {
  const node = make("details", undefined, { class: "job" });
  const head = make("summary");
  const when = { dead: job.died_ms, scheduled: job.due_ms, ended: job.ended_ms }[state] ?? job.pushed_ms;
  const word = { dead: "died", scheduled: "due", ended: job.reason ? "died" : "done" }[state] ?? "pushed";
  head.append(make("strong", job.name || "unreadable"), make("code", job.id ?? ""), `${word} `, moment(when));
  if (job.took_ms !== null) head.append(` after ${time(job.took_ms)}`);
  for (const tag of job.tags) head.append(make("a", tag, { class: "tag", href: address("jobs", queue, "ended", tag) }));
  if (job.failed) head.append(make("span", `${job.failed} failed`, { class: "failed" }));
  if (job.progress) {
    head.append(make("progress", undefined, { max: job.progress.total || 1, value: job.progress.done }));
    head.append(`${number(job.progress.done)} of ${number(job.progress.total)} ${job.progress.note}`);
  }
  if (job.reason) head.append(make("p", job.reason, { class: "failed" }));
  node.append(head);
  if (job.blocked_by) node.append(make("p", `waits for ${job.blocked_by}`));
  if (job.worker) node.append(make("p", `with ${job.worker}`));
  node.append(make("pre", pretty(job.payload), { tabindex: "0", "aria-label": "Payload" }));
  if (job.size > job.payload.length) node.append(make("p", `Truncated: the payload has ${number(job.size)} bytes.`));
  if (job.failures.length) {
    const attempts = make("ol", undefined, { class: "attempts", start: Math.max(1, job.failed - job.failures.length + 1) });
    attempts.append(
      ...job.failures.map((failure) => {
        const line = make("li");
        line.append(moment(failure.at_ms), ` ${failure.reason}`);
        return line;
      }),
    );
    node.append(make("h3", "Failed attempts"), attempts);
  }
  if (job.id) node.addEventListener("toggle", () => node.open && showLog(node, job).catch((error) => say(error.message, true)));
  const actions = make("p");
  if (job.id && state !== "ended") actions.append(make("a", "Link to this job", { href: address("jobs", queue, state, job.id) }));
  if (writable && job.id) actions.append(...fates(queue, state, job, node));
  node.append(actions);
  return node;
}

// Shows the lines that the job has logged; read each time it is opened.
async function showLog(node, job) {
  const { lines } = await ask(`jobs/${job.id}/log?name=${encodeURIComponent(job.name)}`);
  node.querySelector(".log")?.remove();
  node.querySelector(".log-title")?.remove();
  if (!lines.length) return;
  const text = lines.map((line) => `${new Date(line.at_ms).toLocaleTimeString()} attempt ${line.attempt}  ${line.text}`).join("\n");
  const shown = make("pre", text, { class: "log", tabindex: "0", "aria-label": "Log" });
  node.lastElementChild.before(make("h3", "Log", { class: "log-title" }), shown);
}

function fates(queue, state, job, node) {
  const decide = (label, path, words) =>
    button(label, async () => {
      const { done } = await ask(`queues/${encodeURIComponent(queue)}/${path}`, "POST");
      if (done) node.remove();
      say(done ? words : "The job is no longer there", !done);
    });
  if (state === "ended") return [];
  if (state !== "dead") return [decide("Cancel", `jobs/${job.id}/cancel`, "Cancelled: the job is or will be among the dead jobs")];
  const edit = button("Edit", async () => {
    const payload = node.querySelector("pre");
    const field = make("textarea", payload.textContent, { "aria-label": "New payload", rows: "8", spellcheck: "false" });
    const save = button("Save and try again", async () => {
      const { done } = await ask(`queues/${encodeURIComponent(queue)}/dead/${job.id}/revive`, "POST", field.value);
      if (done) node.remove();
      say(done ? "The job is waiting again, with its new payload" : "The job is no longer there", !done);
    });
    payload.replaceWith(field);
    edit.replaceWith(save);
    field.focus();
  });
  const whole = job.size <= job.payload.length && job.payload !== "encrypted";
  return [decide("Try again", `dead/${job.id}/revive`, "The job is waiting again"), decide("Remove", `dead/${job.id}/forget`, "The job was removed"), ...(whole ? [edit] : [])];
}

async function all(fate, question) {
  const [, queue] = where();
  if (!confirm(question(queue))) return;
  await ask(`queues/${encodeURIComponent(queue)}/dead/${fate}`, "POST");
  await refresh();
  await route();
}

element("more").addEventListener("click", () => more().catch((error) => say(error.message, true)));
element("all").append(
  button("Try all again", () => all("revive", (queue) => `Try all dead jobs of ${queue} again?`)),
  button("Remove all", () => all("forget", (queue) => `Permanently remove all dead jobs of ${queue}?`)),
);
element("searching").addEventListener("submit", (event) => {
  event.preventDefault();
  const [, queue, state] = where();
  const text = element("search").value.trim();
  location.hash = text ? address("jobs", queue, state, text) : address("jobs", queue, state);
});
