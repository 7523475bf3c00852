/* ---- Counts and shares. ---- */

function writeShares() {
  const all = isKept.reduce((total, kept) => total + kept, 0);
  const rows = data.capacities.map((capacity, partition) => {
    const kept = isKept.subarray(partition * N, (partition + 1) * N).reduce((total, one) => total + one, 0);
    const bar = element("div", { className: "bar", ariaHidden: "true" }, element("i"));
    bar.style.width = `${(100 * capacity) / N}%`;
    bar.firstChild.style.width = `${capacity ? (100 * kept) / capacity : 0}%`;
    const row = element("li", {}, element("strong", {}, partitionName(partition)),
      element("span", { className: "amount" }, `${kept} of ${capacity}`), bar,
      element("span", { className: "muted" }, `${percent(kept, all)} of kept`));
    if (partition !== whole) row.dataset.tile = partition - firstTile;
    return row;
  });
  byId("shares").replaceChildren(...rows);
}

/* ---- State: controls, page, address. ---- */

const stock = data.stock_tokens;
const sliders = { budget: data.budgets.map((budget) => budget.percent), alpha: data.alphas };

function update() {
  const method = methods.get(shown.selector);
  const { tokens, note } = data.budgets[shown.budget];
  isKept = keptCells(shown.selector, shown.budget, shown.alpha);

  byId("alpha").disabled = !method.uses_alpha;
  for (const [id, values] of Object.entries(sliders)) {
    const [slider, value] = [byId(id), `${values[shown[id]]}%`];
    slider.value = shown[id];
    slider.style.setProperty("--fill", `${(100 * shown[id]) / slider.max}%`);
    slider.setAttribute("aria-valuetext", value);
    byId(`${id}-value`).textContent = slider.disabled ? "" : value;
  }
  byId("selector").value = shown.selector;
  document.querySelector(`input[name=view][value=${shown.view}]`).checked = true;
  byId("beneath-field").hidden = shown.view === "kept";
  byId("keys").hidden = shown.view !== "kept";
  byId("kept-key").textContent = method.merges ? "kept, others may be merged into it" : "kept";
  byId("selector-about").textContent = method.about;
  byId("alpha-about").textContent = tiles === 0 || whole === null ? "No effect: it divides tokens between a thumbnail and tiles."
    : method.uses_alpha ? "The thumbnail's part of the kept tokens." : "This selector does not use it.";

  byId("count-kept").textContent = tokens;
  byId("count-stock").textContent = stock;
  byId("count-dropped").textContent = stock - tokens;
  byId("percentage").textContent = `${percent(tokens, stock)} of the picture's stock sequence reaches the LLM.`;
  byId("count-note").textContent = note;
  writeShares();
  for (const map of maps) { map.writeLegend(); map.render(); }
  describe(maps.find((map) => map.cursor), false);
  announce();
  writeHash();
}

const later = (delay, action) => {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(action, delay); };
};
const announce = later(400, () => {
  byId("announcement").textContent = `${byId("count-kept").textContent} of ${stock} tokens kept. ${byId("percentage").textContent}`;
});
// Browsers limit how often a page may do this.
const writeHash = later(250, () => {
  const { selector, view } = shown;
  const [budget, alpha] = ["budget", "alpha"].map((id) => sliders[id][shown[id]]);
  history.replaceState(null, "", `#${new URLSearchParams({ budget, alpha, selector, view })}`);
});

function readHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const [id, values] of Object.entries(sliders)) {
    if (values.includes(wanted.get(id))) shown[id] = values.indexOf(wanted.get(id));
  }
  if (methods.has(wanted.get("selector"))) shown.selector = wanted.get("selector");
  if (["kept", "init", "final"].includes(wanted.get("view"))) shown.view = wanted.get("view");
}

function writeStaticText() {
  document.title = `${data.name} – vllm-hired inspect`;
  byId("name").textContent = data.name;
  const pieces = tiles === 0 ? "in one piece"
    : `${tileRows} × ${tileCols} tiles${whole === null ? "" : " and a thumbnail"}`;
  const facts = [`${number(data.width)} × ${number(data.height)} pixels`, pieces,
    `${rows} × ${cols} cells${partitions > 1 ? " each" : ""}, of ${data.cell.height} × ${data.cell.width} pixels`, data.model];
  if (data.token_cap !== null) facts.push(`token cap ${number(data.token_cap)}`);
  byId("facts").replaceChildren(...facts.map((fact) => element("span", {}, fact)));
  byId("padding").hidden = isValid.every(Boolean);
  byId("newlines").hidden = data.newlines === 0;
  byId("view-init").textContent = `Init layer\u00a0${data.layers.init}`;
  byId("view-final").textContent = `Final layer\u00a0${data.layers.final}`;
  for (const [id, values] of Object.entries(sliders)) byId(id).max = values.length - 1;
  for (const name of methods.keys()) byId("selector").append(element("option", { value: name }, name));
  byId("left-out").append(...data.left_out.map((line) => element("p", { className: "muted" }, `Left out: ${line}`)));
  for (const map of maps) {
    map.canvas.setAttribute("aria-label", `${map.title}, ${map.rows} by ${map.cols} cells. Arrow keys move from cell to cell, with Shift six at a time.`);
    map.canvas.setAttribute("aria-describedby", "cell");
  }

  const panels = document.querySelector(".panels");
  if (!data.canvas || !data.whole) panels.style.gridTemplateColumns = "minmax(0, 1fr)";
  byId("whole-panel").hidden = !data.whole;
  byId("canvas-panel").hidden = !data.canvas;
  if (data.canvas) {
    const aspect = (tileCols * cols) / (tileRows * rows);
    panels.style.setProperty("--canvas-share", `${(1.5 * Math.sqrt(aspect)).toFixed(2)}fr`);
    byId("canvas-panel").style.setProperty("--panel-width", `max(16rem, calc(88vh * ${aspect}))`);
  } else {
    byId("whole-panel").style.setProperty("--panel-width", `max(16rem, min(52rem, calc(70vh * ${cols / rows})))`);
  }
}

for (const id of Object.keys(sliders)) {
  byId(id).addEventListener("input", (event) => { shown[id] = Number(event.target.value); update(); });
}
byId("selector").addEventListener("change", (event) => { shown.selector = event.target.value; update(); });
byId("view").addEventListener("change", (event) => { shown.view = event.target.value; update(); });
byId("beneath").addEventListener("change", () => maps.forEach((map) => map.render()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => maps.forEach((map) => map.render()));
addEventListener("hashchange", () => { readHash(); update(); });

writeStaticText();
readHash();
update();
