// Shows the state once a second, and sends what is pressed.
const rates = [];

const show = (state) => {
  const figures = { ...state, ...state.account };
  for (const place of document.querySelectorAll("[data-figure]")) {
    const value = figures[place.dataset.figure];
    place.textContent = Math.round(value).toLocaleString("en");
    const isLoss = /lost|fail/.test(place.dataset.figure) && value > 0;
    place.classList.toggle("bad", isLoss);
  }
  const rows = state.parts.map((part) => {
    const row = document.createElement("tr");
    row.className = part.is_well ? "well" : "away";
    for (const text of [part.name, part.state]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    return row;
  });
  document.getElementById("parts").replaceChildren(...rows);
  document.getElementById("last").textContent = state.last;
  rates.push(state.requests_per_second);
  if (rates.length > 120) rates.shift();
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, n) => `${n * 5},${115 - (110 * rate) / most}`);
  document.getElementById("line").setAttribute("points", points.join(" "));
};

const look = async () => {
  try {
    show(await (await fetch("/state")).json());
  } catch {
    document.getElementById("last").textContent = "The fleet has stopped.";
  }
};

setInterval(look, 1000);
look();

document.addEventListener("click", async ({ target }) => {
  const action = target.dataset?.action;
  if (action) await fetch("/act", { method: "POST", body: new URLSearchParams({ action }) });
});
