/* ---- Counts and shares. ---- */

function countNote() {
  const { budget } = shown;
  if (isStockPath(budget)) {
    return `Nothing is dropped: vLLM's stock path${height ? `, its ${height} newline tokens included` : ""}. Alpha has no effect.`;
  }
  const newlines = height ? `Dropping leaves out the ${height} newline tokens too.` : "";
  const wanted = budget === 100 ? stockTokens : Math.max(floorShare([budget, 100], partitions * N), 1);
  if (selection.count === data.token_cap && wanted > data.token_cap) return `${newlines} Held down by the token cap of ${number(data.token_cap)}.`;
  if (selection.count === selectable) return `${newlines} Every patch that is not padding is kept.`;
  return newlines;
}

function writeShares() {
  const { weights } = selectors.get(shown.selector);
  const total = sum(weights);
  const weight = (tile) => total ? `weight ${(Number((weights[tile] * 2000n + total) / (2n * total)) / 10).toFixed(1)}%` : "weight 0";
  const rows = [selection.thumbnail, ...selection.tiles].map((kept, partition) => {
    const capacity = partition ? capacities[partition - 1] : N;
    const bar = element("div", { className: "bar", ariaHidden: "true" }, element("i"));
    bar.style.width = `${(100 * capacity) / N}%`;
    bar.firstChild.style.width = `${capacity ? (100 * kept) / capacity : 0}%`;
    const amount = element("span", { className: "amount", ...(partition ? {} : { id: "share-thumbnail" }) }, `${kept} of ${capacity}`);
    const row = element("li", {}, element("strong", {}, partitionName(partition)), amount, bar,
      element("span", { className: "muted" }, `${percent(kept, selection.indices.length)} of kept`));
    if (partition) {
      row.dataset.tile = partition - 1;
      row.append(element("span", { className: "muted" }, weight(partition - 1)));
    }
    return row;
  });
  byId("shares").replaceChildren(...rows);
}

/* ---- State: controls, page, address. ---- */

function update() {
  const selector = selectors.get(shown.selector);
  const alpha = currentAlpha();
  selection = select(shown.selector, shown.budget, alpha);
  isKept.fill(0);
  for (const patch of selection.indices) isKept[patch] = 1;

  controls.alpha.step = alpha % 5 ? 1 : 5;
  controls.alpha.disabled = selector.share !== null;
  for (const [id, value] of [["budget", shown.budget], ["alpha", alpha]]) {
    const input = controls[id];
    input.value = value;
    input.style.setProperty("--fill", `${(100 * (value - input.min)) / (input.max - input.min)}%`);
    input.setAttribute("aria-valuetext", `${value}%`);
    byId(`${id}-value`).textContent = `${value}%`;
  }
  controls.selector.value = shown.selector;
  document.querySelector(`input[name=view][value=${shown.view}]`).checked = true;
  byId("beneath-field").hidden = shown.view === "kept";
  byId("keys").hidden = shown.view !== "kept";
  byId("selector-about").textContent = selector.about;
  byId("alpha-about").textContent = partitions === 1 ? "No effect: there are no tiles."
    : selector.share === null ? "The thumbnail's part of the kept tokens." : "Fixed by this selector.";

  byId("count-kept").textContent = selection.count;
  byId("count-stock").textContent = stockTokens;
  byId("count-dropped").textContent = stockTokens - selection.count;
  byId("percentage").textContent = `${percent(selection.count, stockTokens)} of the picture's stock sequence reaches the LLM.`;
  byId("count-note").textContent = countNote();
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
  byId("announcement").textContent = `${selection.count} of ${stockTokens} tokens kept. ${byId("percentage").textContent}`;
});
// Browsers limit how often a page may do this.
const writeHash = later(250, () => {
  const { budget, alpha, selector, view } = shown;
  history.replaceState(null, "", `#${new URLSearchParams({ budget, alpha, selector, view })}`);
});

function readHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const whole = (key, low, high) => {
    const value = wanted.get(key);
    if (/^\d{1,3}$/.test(value) && value >= low && value <= high) shown[key] = Number(value);
  };
  whole("budget", 1, 100);
  whole("alpha", 0, 100);
  if (selectors.has(wanted.get("selector"))) shown.selector = wanted.get("selector");
  if (["kept", "init", "final"].includes(wanted.get("view"))) shown.view = wanted.get("view");
}

function writeStaticText() {
  document.title = `${data.name} – vllm-hired inspect`;
  byId("name").textContent = data.name;
  const facts = [`${number(data.width)} × ${number(data.height)} pixels`,
    data.canvas ? `${tileRows} × ${tileCols} tiles and a thumbnail` : "thumbnail alone, no tiles",
    `${g} × ${g} patches each`, data.model];
  if (data.token_cap !== null) facts.push(`token cap ${number(data.token_cap)}`);
  byId("facts").replaceChildren(...facts.map((fact) => element("span", {}, fact)));
  byId("keys").lastElementChild.hidden = selectable === partitions * N;
  byId("view-init").textContent = `Init layer\u00a0${data.layers.init}`;
  byId("view-final").textContent = `Final layer\u00a0${data.layers.final}`;
  for (const { name } of data.selectors) controls.selector.append(element("option", { value: name }, name));
  for (const map of maps) {
    map.canvas.setAttribute("aria-label", `${map.title}, ${map.rows} by ${map.cols} patches. Arrow keys move from patch to patch, with Shift six at a time.`);
    map.canvas.setAttribute("aria-describedby", "patch");
  }

  const panels = document.querySelector(".panels");
  if (data.canvas) {
    const aspect = tileCols / tileRows;
    panels.style.setProperty("--canvas-share", `${(1.5 * Math.sqrt(aspect)).toFixed(2)}fr`);
    byId("canvas-panel").style.setProperty("--panel-width", `max(16rem, calc(88vh * ${aspect}))`);
  } else {
    byId("canvas-panel").hidden = true;
    panels.style.gridTemplateColumns = "minmax(0, 1fr)";
    byId("thumbnail-panel").style.setProperty("--panel-width", "36rem");
  }
}

for (const id of ["budget", "alpha"]) {
  controls[id].addEventListener("input", () => { shown[id] = Number(controls[id].value); update(); });
}
controls.selector.addEventListener("change", () => { shown.selector = controls.selector.value; update(); });
byId("view").addEventListener("change", (event) => { shown.view = event.target.value; update(); });
byId("beneath").addEventListener("change", () => maps.forEach((map) => map.render()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => maps.forEach((map) => map.render()));
addEventListener("hashchange", () => { readHash(); update(); });

writeStaticText();
readHash();
update();
window.hired = {
  select,
  state: () => ({ selector: shown.selector, budget: shown.budget, alpha: currentAlpha(), ...structuredClone(selection) }),
};
