/* ---- What is shown. ---- */

const shown = { ...data.start, view: "kept" };
let isKept = null; // by cell

const number = (value) => value.toLocaleString("en");
/** As `Layout.partition_names` has it, and as pictures do, with a capital. */
const partitionName = (partition) => data.partitions[partition].replace(/^./, (first) => first.toUpperCase());
const percent = (part, whole) => `${whole ? ((100 * part) / whole).toFixed(1) : "0.0"}%`;

const attentionName = data.attention === "cls" ? "[CLS] attention" : "Attention received from all cells";
const attention = (value) => (value !== 0 && Math.abs(value) < 1e-5 ? value.toExponential(2) : value.toPrecision(3));

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/* ---- Cell maps. ---- */

const viridis = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"];
const heatColours = Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (viridis.length - 1);
  const stop = Math.min(Math.floor(at), viridis.length - 2);
  const channel = (hex, c) => parseInt(hex.slice(1 + 2 * c, 3 + 2 * c), 16);
  const mixed = [0, 1, 2].map((c) =>
    Math.round(channel(viridis[stop], c) + (at - stop) * (channel(viridis[stop + 1], c) - channel(viridis[stop], c))));
  return `rgb(${mixed})`;
});

/** Attention is skewed: a few cells hold most of it. So the scale is logarithmic, over four decades at most. */
function heatScale(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (!(high > low)) return { low, high, kind: "one value", colour: () => heatColours[128] };
  const isLog = low >= 0 && high > 20 * low;
  const floor = isLog ? Math.max(low, high / 1e4) : low;
  const place = isLog
    ? (value) => Math.log(Math.max(value, floor) / floor) / Math.log(high / floor)
    : (value) => (value - low) / (high - low);
  const kind = isLog ? (floor > low ? `log scale from ${attention(floor)}` : "log scale") : "linear scale";
  return { low, high, kind, colour: (value) => heatColours[Math.round(255 * place(value))] };
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

class CellMap {
  /** `start`: row and column at which the keyboard's cursor first stands. */
  constructor(panel, title, source, rows, cols, cellAt, start = [0, 0]) {
    Object.assign(this, { title, rows, cols, cellAt, start, cursor: null, picture: null });
    this.canvas = panel.querySelector("canvas");
    this.legend = panel.querySelector(".legend");
    this.base = document.createElement("canvas");
    this.cells = Array.from({ length: rows * cols }, (_, at) => cellAt(Math.floor(at / cols), at % cols));
    const valid = this.cells.filter((cell) => isValid[cell]);
    this.scales = Object.fromEntries(["init", "final"].map((layer) => [layer, heatScale(valid.map((cell) => heat[layer][cell]))]));
    panel.querySelector("h2").textContent = title;
    panel.querySelector("[data-size]").textContent = `${rows} × ${cols} cells`;
    panel.style.setProperty("--aspect", `${cols} / ${rows}`);

    const image = new Image();
    image.src = source;
    image.decode().then(() => { this.picture = image; this.render(); }, () => {});
    new ResizeObserver(() => this.fit()).observe(this.canvas);
    this.fit();
    this.listen();
  }

  /** Makes one canvas pixel one device pixel, and cell edges whole pixels, so that the grid is crisp. */
  fit() {
    const box = this.canvas.getBoundingClientRect();
    const [w, h] = [box.width, box.height].map((length) => Math.max(1, Math.round(length * devicePixelRatio)));
    for (const canvas of [this.canvas, this.base]) Object.assign(canvas, { width: w, height: h });
    this.x = Array.from({ length: this.cols + 1 }, (_, i) => Math.round((i * w) / this.cols));
    this.y = Array.from({ length: this.rows + 1 }, (_, i) => Math.round((i * h) / this.rows));
    this.render();
  }

  rectangle(row, col) {
    return [this.x[col], this.y[row], this.x[col + 1] - this.x[col], this.y[row + 1] - this.y[row]];
  }

  /** The rectangles of all cells that `test` accepts, and the outline around them. */
  trace(test) {
    const [area, outline] = [new Path2D(), new Path2D()];
    const at = (row, col) => row >= 0 && col >= 0 && row < this.rows && col < this.cols && test(this.cells[row * this.cols + col]);
    for (let row = 0; row < this.rows; row++) {
      for (let col = 0; col < this.cols; col++) {
        if (!at(row, col)) continue;
        const [x, y, w, h] = this.rectangle(row, col);
        area.rect(x, y, w, h);
        if (!at(row - 1, col)) { outline.moveTo(x, y); outline.lineTo(x + w, y); }
        if (!at(row + 1, col)) { outline.moveTo(x, y + h); outline.lineTo(x + w, y + h); }
        if (!at(row, col - 1)) { outline.moveTo(x, y); outline.lineTo(x, y + h); }
        if (!at(row, col + 1)) { outline.moveTo(x + w, y); outline.lineTo(x + w, y + h); }
      }
    }
    return { area, outline };
  }

  render() {
    if (!isKept) return;
    const context = this.base.getContext("2d");
    const { width: w, height: h } = this.base;
    const isHeat = shown.view !== "kept";
    const all = [0, 0, w, h];
    const drawPicture = () => { if (this.picture) context.drawImage(this.picture, ...all); };
    const kept = this.trace((cell) => isKept[cell]);

    context.fillStyle = colour("wash");
    context.fillRect(...all);
    drawPicture();
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(...all);
    context.globalCompositeOperation = "source-over";

    if (isHeat) this.drawHeat(context);
    else {
      context.globalAlpha = 0.7;
      context.fillStyle = colour("wash");
      context.fillRect(...all);
      context.globalAlpha = 1;
      context.save();
      context.clip(kept.area);
      drawPicture();
      context.restore();
    }
    this.drawGrid(context, w, h);
    this.drawPadding(context);
    this.drawTileBorders(context, w, h);
    if (isValid.some((valid, cell) => valid && !isKept[cell])) {
      if (isHeat) stroke(context, kept.outline, "#ffffff", 1, "rgba(0, 0, 0, .45)");
      else stroke(context, kept.outline, colour("contour"), 1.4);
    }
    this.paint();
  }

  drawHeat(context) {
    const scale = this.scales[shown.view];
    context.globalAlpha = byId("beneath").checked ? 0.78 : 1;
    this.cells.forEach((cell, at) => {
      if (!isValid[cell]) return;
      context.fillStyle = scale.colour(heat[shown.view][cell]);
      context.fillRect(...this.rectangle(Math.floor(at / this.cols), at % this.cols));
    });
    context.globalAlpha = 1;
  }

  drawGrid(context, w, h) {
    context.fillStyle = shown.view === "kept" ? "rgba(0, 0, 0, .07)" : "rgba(0, 0, 0, .13)";
    for (const x of this.x.slice(1, -1)) context.fillRect(x, 0, 1, h);
    for (const y of this.y.slice(1, -1)) context.fillRect(0, y, w, 1);
  }

  drawPadding(context) {
    const { area, outline } = this.trace((cell) => !isValid[cell]);
    const { width: w, height: h } = this.base;
    context.save();
    context.clip(area);
    context.fillStyle = colour("hatch-ground");
    context.fillRect(0, 0, w, h);
    context.beginPath();
    for (let x = -h; x < w; x += 7 * devicePixelRatio) { context.moveTo(x, h); context.lineTo(x + h, 0); }
    context.strokeStyle = colour("hatch");
    context.lineWidth = devicePixelRatio;
    context.stroke();
    context.restore();
    stroke(context, outline, colour("hatch"), 1);
  }

  drawTileBorders(context, w, h) {
    const borders = new Path2D();
    for (let col = cols; col < this.cols; col += cols) { borders.moveTo(this.x[col], 0); borders.lineTo(this.x[col], h); }
    for (let row = rows; row < this.rows; row += rows) { borders.moveTo(0, this.y[row]); borders.lineTo(w, this.y[row]); }
    stroke(context, borders, "#ffffff", 1, "rgba(20, 23, 28, .6)");
    if (Math.floor(this.cells[0] / N) === whole) return;
    const size = 17 * devicePixelRatio;
    context.font = `600 ${11 * devicePixelRatio}px system-ui, sans-serif`;
    Object.assign(context, { textAlign: "center", textBaseline: "middle" });
    for (let tile = 0; tile < tiles; tile++) {
      const x = this.x[(tile % tileCols) * cols] + 4 * devicePixelRatio;
      const y = this.y[Math.floor(tile / tileCols) * rows] + 4 * devicePixelRatio;
      context.fillStyle = "rgba(20, 23, 28, .78)";
      context.fillRect(x, y, size, size);
      context.fillStyle = "#ffffff";
      context.fillText(data.partitions[firstTile + tile].replace("tile ", ""), x + size / 2, y + size / 2 + 0.5);
    }
  }

  paint() {
    const context = this.canvas.getContext("2d");
    context.drawImage(this.base, 0, 0);
    if (!this.cursor) return;
    const cell = new Path2D();
    cell.rect(...this.rectangle(...this.cursor));
    stroke(context, cell, "#ffffff", 2, "#000000");
  }

  point(cursor, byKeyboard) {
    if (`${cursor}` === `${this.cursor}`) return;
    this.cursor = cursor;
    this.paint();
    describe(cursor ? this : maps.find((map) => map.cursor), byKeyboard);
  }

  listen() {
    const limit = (value, count) => Math.min(Math.max(value, 0), count - 1);
    const { canvas } = this;
    const follow = ({ clientX, clientY }) => {
      const box = canvas.getBoundingClientRect();
      this.point([limit(Math.floor(((clientY - box.top) / box.height) * this.rows), this.rows),
        limit(Math.floor(((clientX - box.left) / box.width) * this.cols), this.cols)], false);
    };
    canvas.addEventListener("pointermove", follow);
    canvas.addEventListener("pointerdown", follow);
    canvas.addEventListener("pointerleave", (event) => { // a finger leaves with every tap
      if (event.pointerType === "mouse" && document.activeElement !== canvas) this.point(null, false);
    });
    canvas.addEventListener("blur", () => this.point(null, true));
    canvas.addEventListener("focus", () => {
      if (canvas.matches(":focus-visible")) this.point(this.cursor ?? this.start, true);
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const [row, col] = this.cursor ?? [0, 0];
      const step = event.shiftKey ? 6 : 1;
      const target = {
        ArrowUp: [row - step, col], ArrowDown: [row + step, col], ArrowLeft: [row, col - step], ArrowRight: [row, col + step],
        Home: [row, 0], End: [row, this.cols - 1], PageUp: [0, col], PageDown: [this.rows - 1, col],
      }[event.key];
      if (!target) return;
      event.preventDefault();
      this.point([limit(target[0], this.rows), limit(target[1], this.cols)], true);
    });
  }

  writeLegend() {
    const scale = this.scales[shown.view];
    this.legend.hidden = !scale;
    if (!scale) return;
    const bar = element("i");
    bar.style.background = `linear-gradient(to right, ${viridis})`;
    this.legend.replaceChildren(
      element("div", { className: "scale" }, attention(scale.low), bar, attention(scale.high)),
      `${attentionName}, layer ${data.layers[shown.view]}, ${scale.kind}; outlined: kept`);
  }
}

/** A line of whole device pixels, on a wider one where the ground may have its colour. */
function stroke(context, path, colour, thickness, under) {
  const pixels = Math.max(1, Math.round(thickness * devicePixelRatio));
  context.save();
  if (pixels % 2) context.translate(0.5, 0.5);
  context.lineCap = "square";
  for (const [style, lineWidth] of under ? [[under, pixels + 2], [colour, pixels]] : [[colour, pixels]]) {
    Object.assign(context, { strokeStyle: style, lineWidth });
    context.stroke(path);
  }
  context.restore();
}

const maps = [];
if (data.whole) {
  maps.push(new CellMap(byId("whole-panel"), partitionName(whole), data.whole, rows, cols,
    (row, col) => whole * N + row * cols + col));
}
if (data.canvas) {
  maps.push(new CellMap(byId("canvas-panel"), "Tiles", data.canvas, tileRows * rows, tileCols * cols, canvasCell, [top, left]));
}

/** One line about the cell under the cursor of `map`. */
function describe(map, byKeyboard) {
  const line = byId("cell");
  line.setAttribute("aria-live", byKeyboard ? "polite" : "off");
  line.classList.toggle("pointing", Boolean(map));
  if (!map) {
    line.replaceChildren(element("span", { className: "hint" }, "Point at a cell, or focus a map and move with the arrow keys."));
    return;
  }
  const cell = map.cellAt(...map.cursor);
  const partition = Math.floor(cell / N);
  const verdict = isKept[cell] ? "kept" : isValid[cell] ? "dropped" : "padding, never kept";
  const first = data.budgets.find((_, budget) => keptCells(shown.selector, budget, shown.alpha)[cell]);
  const facts = [`row ${Math.floor((cell % N) / cols) + 1}, column ${((cell % N) % cols) + 1}`,
    `init ${attention(heat.init[cell])}`, `final ${attention(heat.final[cell])}`];
  if (first) facts.push(`first kept at ${first.percent}%`);
  line.replaceChildren(element("b", {}, partitionName(partition)),
    ...facts.map((fact) => element("span", {}, fact)),
    element("span", { className: isKept[cell] ? "verdict" : "verdict dropped" }, verdict));
}
