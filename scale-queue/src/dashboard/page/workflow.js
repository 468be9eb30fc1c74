// One batch: its progress; of a workflow, a drawing of its jobs and a table of them.
const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 168, height: 46, right: 56, below: 18 };

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = visible(text);
  return node;
}

// Each job is one column to the right of the last job that it follows.
function layout(nodes) {
  const columns = new Map();
  const rows = [];
  return new Map(
    nodes.map((node) => {
      const column = Math.max(-1, ...node.after.map((name) => columns.get(name) ?? -1)) + 1;
      columns.set(node.name, column);
      rows[column] = (rows[column] ?? -1) + 1;
      return [node.name, { x: 8 + column * (BOX.width + BOX.right), y: 8 + rows[column] * (BOX.height + BOX.below) }];
    }),
  );
}

const cut = (text) => (text.length > 20 ? `${text.slice(0, 19)}…` : text);

function drawing(nodes) {
  const places = layout(nodes);
  const all = [...places.values()];
  const width = Math.max(...all.map(({ x }) => x)) + BOX.width + 8;
  const height = Math.max(...all.map(({ y }) => y)) + BOX.height + 8;
  const image = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Jobs and the jobs that they follow; the table has the same" });
  for (const node of nodes) {
    const to = places.get(node.name);
    for (const name of node.after) {
      const from = places.get(name);
      if (!from) continue;
      const [x, y, endX, endY] = [from.x + BOX.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2];
      const bend = (endX - x) / 2;
      image.append(shape("path", { d: `M${x},${y} C${x + bend},${y} ${endX - bend},${endY} ${endX},${endY}`, class: "edge" }));
    }
  }
  for (const node of nodes) {
    const { x, y } = places.get(node.name);
    const group = shape("g", { class: `node ${node.state}` });
    group.append(
      shape("title", {}, `${node.name}: ${node.job}, ${node.state}`),
      shape("rect", { x, y, width: BOX.width, height: BOX.height, rx: 8 }),
      shape("text", { x: x + 12, y: y + 19, class: "name" }, cut(node.name)),
      shape("text", { x: x + 12, y: y + 36 }, cut(`${node.state} · ${node.job}`)),
    );
    image.append(group);
  }
  return image;
}

function nodeRow(id, node) {
  const line = make("tr");
  line.append(
    make("th", node.name, { scope: "row" }),
    ...cells(["Job", node.job], ["State", node.state, { dead: "failed", stuck: "late" }[node.state]], ["After", node.after.join(", ")]),
  );
  const change = (label, verb) =>
    button(label, async () => {
      const { done } = await ask(`batches/${encodeURIComponent(id)}/nodes/${encodeURIComponent(node.name)}/${verb}`, "POST");
      say(done ? "Done" : "It has changed meanwhile", !done);
      await openBatch(id);
    });
  const actions = make("td");
  if (writable && node.state === "dead") actions.append(change("Try again", "retry"));
  if (writable && (node.state === "held" || node.state === "started")) actions.append(change("Cancel", "cancel"));
  line.append(actions);
  return line;
}

// Drawn again only after a change, so that the keyboard focus stays.
let drawn = "";

async function openBatch(id) {
  const batch = await ask(`batches/${encodeURIComponent(id)}`);
  const now = JSON.stringify([id, batch, writable]);
  if (now === drawn) return;
  drawn = now;
  const ended = batch.done + batch.dead;
  element("batch-title").textContent = visible(id);
  element("batch-progress").replaceChildren(
    make("progress", undefined, { max: batch.total, value: ended, "aria-label": "Progress" }),
    ` ${number(batch.done)} of ${number(batch.total)} done, ${number(batch.dead)} dead${batch.cancelled ? ", cancelled" : ""}`,
  );
  const { nodes } = batch;
  element("batch-drawing").replaceChildren(...(nodes.length ? [drawing(nodes)] : []));
  element("batch-nodes").hidden = !nodes.length;
  element("batch-rows").replaceChildren(...nodes.map((node) => nodeRow(id, node)));
}
