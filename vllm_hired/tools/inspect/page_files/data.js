const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
if (data.format !== 2) throw new Error(`this page reads format 2, not ${data.format}`);

/* ---- Layout. A flat patch index is partition * N + patch; partition 0 is the thumbnail. ---- */

const { rows: g, tile_rows: tileRows, tile_cols: tileCols, top, left } = data.layout;
const N = g * g;
const partitions = data.partitions.length;

function canvasPatch(row, col) {
  const tile = Math.floor(row / g) * tileCols + Math.floor(col / g);
  return (tile + 1) * N + (row % g) * g + (col % g);
}

/* ---- What Python chose, and what it saw. ---- */

const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const floats = (base64) => new Float32Array(bytes(base64).buffer);
const inflate = async (base64) => {
  const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};
/** One flag for each patch, of a row of `bits`. */
const unpack = (bits, row) => Uint8Array.from({ length: partitions * N }, (_, patch) =>
  (bits[row * Math.ceil((partitions * N) / 8) + (patch >> 3)] >> (7 - (patch & 7))) & 1);

const heat = { init: floats(data.heat.init), final: floats(data.heat.final) };
const isValid = unpack(await inflate(data.valid), 0);
const methods = new Map(await Promise.all(data.methods.map(async (method) =>
  [method.name, { ...method, kept: await inflate(method.kept) }])));

/** By patch, whether a method keeps it; budget and alpha are places in their lists. */
function keptPatches(name, budget, alpha) {
  const { kept, uses_alpha: usesAlpha } = methods.get(name);
  return unpack(kept, (usesAlpha ? alpha : 0) * data.budgets.length + budget);
}
