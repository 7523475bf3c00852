const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
if (data.format !== 3) throw new Error(`this page reads format 3, not ${data.format}`);

/* ---- Layout. A flat cell index is partition * N + cell, in the order of the vision tower. ---- */

const { rows, cols, tile_rows: tileRows, tile_cols: tileCols, first_tile: firstTile, top, left } = data.layout;
const N = rows * cols;
const partitions = data.partitions.length;
const tiles = data.canvas ? tileRows * tileCols : 0;
/** The partition that shows the whole picture, or null. */
const whole = data.whole_partition;

function canvasCell(row, col) {
  const tile = Math.floor(row / rows) * tileCols + Math.floor(col / cols);
  return (firstTile + tile) * N + (row % rows) * cols + (col % cols);
}

/* ---- What Python chose, and what it saw. ---- */

const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const floats = (base64) => new Float32Array(bytes(base64).buffer);
const inflate = async (base64) => {
  const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};
/** One flag for each cell, of a row of `bits`. */
const unpack = (bits, row) => Uint8Array.from({ length: partitions * N }, (_, cell) =>
  (bits[row * Math.ceil((partitions * N) / 8) + (cell >> 3)] >> (7 - (cell & 7))) & 1);

const heat = { init: floats(data.heat.init), final: floats(data.heat.final) };
const isValid = unpack(await inflate(data.valid), 0);
const methods = new Map(await Promise.all(data.methods.map(async (method) =>
  [method.name, { ...method, kept: await inflate(method.kept) }])));

/** By cell, whether a method keeps it; budget and alpha are places in their lists. */
function keptCells(name, budget, alpha) {
  const { kept, uses_alpha: usesAlpha } = methods.get(name);
  return unpack(kept, (usesAlpha ? alpha : 0) * data.budgets.length + budget);
}
