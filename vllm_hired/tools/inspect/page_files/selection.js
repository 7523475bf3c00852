const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
if (data.format !== 1) throw new Error(`this page reads format 1, not ${data.format}`);

/* ---- Layout. A flat patch index is partition * N + patch; partition 0 is the thumbnail. ---- */

const { rows: g, tile_rows: tileRows, tile_cols: tileCols, top, left, height, width } = data.layout;
const N = g * g;
const partitions = tileRows * tileCols + 1;
const selectable = N + height * width;
const stockTokens = selectable + height; // one newline token ends each row of the canvas

function tileCapacities() {
  const lengths = (tiles, start, length) => Array.from({ length: tiles }, (_, tile) =>
    Math.max(0, Math.min(start + length, (tile + 1) * g) - Math.max(start, tile * g)));
  const columns = lengths(tileCols, left, width);
  return lengths(tileRows, top, height).flatMap((rows) => columns.map((cols) => rows * cols));
}

function canvasPatch(row, col) {
  const tile = Math.floor(row / g) * tileCols + Math.floor(col / g);
  return (tile + 1) * N + (row % g) * g + (col % g);
}

const capacities = tileCapacities();
const sequence = Array.from({ length: N }, (_, patch) => patch);
for (let row = top; row < top + height; row++) {
  for (let col = left; col < left + width; col++) sequence.push(canvasPatch(row, col));
}
const isValid = new Uint8Array(partitions * N);
for (const patch of sequence) isValid[patch] = 1;

/* ---- The selection: counts in integers, the split among tiles in BigInt. ---- */

const floorShare = ([part, all], whole) => (part * whole - (part * whole) % all) / all;

function keptCount(budget) {
  const cap = data.token_cap ?? stockTokens;
  if (budget === 100) return stockTokens <= cap ? stockTokens : Math.min(selectable, cap);
  return Math.min(Math.max(floorShare([budget, 100], partitions * N), 1), selectable, cap);
}

function splitThumbnail(kept, share) {
  const thumbnail = Math.min(floorShare(share, kept), N);
  const tiles = Math.min(kept - thumbnail, height * width);
  return [kept - tiles, tiles];
}

const sum = (values) => values.reduce((total, value) => total + value, 0n);

/** Splits `total` in proportion to `weights`, none above its capacity: fills tiles whose share
 *  reaches their capacity, then largest remainder. Zero weights alone: capacities stand in. */
function allocate(weights, caps, total) {
  const split = caps.map(() => 0n);
  let open = caps.map((_, tile) => tile);
  let rest = total;
  for (;;) {
    const own = sum(open.map((tile) => weights[tile]));
    const shares = own > 0n ? weights : caps;
    const all = sum(open.map((tile) => shares[tile]));
    const full = open.filter((tile) => rest * shares[tile] >= caps[tile] * all);
    if (full.length > 0) {
      for (const tile of full) split[tile] = caps[tile];
      rest -= sum(full.map((tile) => caps[tile]));
      open = open.filter((tile) => !full.includes(tile));
      continue;
    }
    for (const tile of open) split[tile] = (rest * shares[tile]) / all;
    const remainder = (tile) => (rest * shares[tile]) % all;
    const over = rest - sum(open.map((tile) => split[tile]));
    open.sort((a, b) => (remainder(a) < remainder(b) ? 1 : remainder(a) > remainder(b) ? -1 : a - b));
    for (const tile of open.slice(0, Number(over))) split[tile] += 1n;
    return split;
  }
}

const floats = (base64) => new Float32Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
const heat = { init: floats(data.heat.init), final: floats(data.heat.final) };
const selectors = new Map(data.selectors.map((selector) => [selector.name, {
  ...selector, weights: selector.weights.map(BigInt), scores: floats(selector.scores), ranks: null,
}]));

/** Place of each valid patch in its partition, best score first, ties to the lower index; -1 for padding. */
function ranksOf(selector) {
  if (selector.ranks) return selector.ranks;
  const { scores } = selector;
  const ranks = new Int32Array(partitions * N).fill(-1);
  for (let partition = 0; partition < partitions; partition++) {
    const order = [];
    for (let patch = partition * N; patch < (partition + 1) * N; patch++) if (isValid[patch]) order.push(patch);
    order.sort((a, b) => (scores[a] < scores[b] ? 1 : scores[a] > scores[b] ? -1 : a - b));
    order.forEach((patch, place) => { ranks[patch] = place; });
  }
  return (selector.ranks = ranks);
}

function select(name, budget, alpha) {
  const selector = selectors.get(name);
  if (!selector) throw new RangeError(`no selector named ${name}`);
  const count = keptCount(budget);
  if (isStockPath(budget)) return { count, indices: [...sequence], thumbnail: N, tiles: [...capacities] };
  const [thumbnail, inTiles] = splitThumbnail(count, selector.share ?? [alpha, 100]);
  const tiles = allocate(selector.weights, capacities.map(BigInt), BigInt(inTiles)).map(Number);
  const quota = [thumbnail, ...tiles];
  const ranks = ranksOf(selector);
  const indices = sequence.filter((patch) => ranks[patch] < quota[Math.floor(patch / N)]);
  return { count, indices, thumbnail, tiles };
}

const isStockPath = (budget) => budget === 100 && keptCount(100) === stockTokens;
