// What an architecture looks like: a colour that people with any colour vision can tell from the
// others (after Okabe and Ito) and a shape that says the same without colour.

const STYLES = {
  topk: { light: "#0072b2", dark: "#4fb0ea", shape: "circle" },
  batchtopk: { light: "#c25400", dark: "#ff9a52", shape: "triangle" },
  standard: { light: "#5b6470", dark: "#aab4c2", shape: "rect" },
  p_anneal: { light: "#008060", dark: "#3fcf9f", shape: "rectRot" },
  standard_bricken: { light: "#a3487f", dark: "#ee9ccb", shape: "star" },
  gated: { light: "#7a5cc7", dark: "#b8a1ff", shape: "crossRot" },
  jumprelu: { light: "#8a7400", dark: "#e6cf4e", shape: "cross" },
  matryoshka: { light: "#ae2f3d", dark: "#ff8b94", shape: "circle" },
  gated_p_anneal: { light: "#3f6d1f", dark: "#a4d377", shape: "triangle" },
};
const SPARE = [
  { light: "#6b4f2a", dark: "#d8b384", shape: "rect" },
  { light: "#146c7c", dark: "#6fd3e3", shape: "rectRot" },
];

const isDark = () => document.documentElement.dataset.theme === "dark";
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// An architecture that came after this page gets the next spare style, always the same one.
const spareOf = new Map();
function styleOf(arch) {
  if (STYLES[arch]) return STYLES[arch];
  if (!spareOf.has(arch)) spareOf.set(arch, SPARE[spareOf.size % SPARE.length]);
  return spareOf.get(arch);
}
const colorOf = (arch) => styleOf(arch)[isDark() ? "dark" : "light"];

function withAlpha(hex, alpha) {
  const n = parseInt(hex.slice(1), 16);
  return `rgb(${n >> 16} ${(n >> 8) & 255} ${n & 255} / ${alpha})`;
}

const SHAPES = {
  circle: '<circle cx="6" cy="6" r="4.6" fill="FILL"/>',
  triangle: '<path d="M6 1 11.2 10.4H.8Z" fill="FILL"/>',
  rect: '<rect x="1.6" y="1.6" width="8.8" height="8.8" fill="FILL"/>',
  rectRot: '<path d="M6 .6 11.4 6 6 11.4.6 6Z" fill="FILL"/>',
  star: '<path d="M6 .8v10.4M1.5 3.4l9 5.2M1.5 8.6l9-5.2" stroke="FILL" stroke-width="1.8"/>',
  crossRot: '<path d="M2 2l8 8M10 2l-8 8" stroke="FILL" stroke-width="2.2"/>',
  cross: '<path d="M6 1v10M1 6h10" stroke="FILL" stroke-width="2.2"/>',
};

// The mark of an architecture as an element for legends and tables.
function markOf(arch) {
  const holder = document.createElement("template");
  const shape = SHAPES[styleOf(arch).shape].replaceAll("FILL", colorOf(arch));
  holder.innerHTML = `<svg viewBox="0 0 12 12" aria-hidden="true">${shape}</svg>`;
  return holder.content.firstChild;
}
