// Elements, icons, and formats of numbers and times. Text becomes text nodes, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Create an HTML element; attributes `on…` are listeners, false and null attributes and children are omitted. */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** Create an SVG element. */
export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter(isShown));
  return element;
}

const shown = new WeakMap();

/** Replace an element's children if the data they show has changed. */
export function show(element, data, create) {
  const key = JSON.stringify(data);
  if (shown.get(element) === key) return;
  shown.set(element, key);
  element.replaceChildren(...[create()].flat(2).filter(isShown));
}

function isShown(child) {
  return child != null && child !== false;
}

/** Set an element's text if it has changed. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// -- icons: distinguishable by shape without colour

const RING = "M8 1.2a6.8 6.8 0 1 0 0 13.6A6.8 6.8 0 0 0 8 1.2Z";
const STROKES = {
  good: [RING, "M4.8 8.2 7 10.4 11.3 5.9"],
  busy: ["M8 1.2A6.8 6.8 0 1 1 1.2 8", "M8 4.5V8l2.4 1.6"],
  warn: ["M8 1.6 15 14H1Z", "M8 6.2v3.6", "M8 11.8v.4"],
  bad: ["M5.2 1.2h5.6l4 4v5.6l-4 4H5.2l-4-4V5.2Z", "M5.6 5.6l4.8 4.8", "M10.4 5.6l-4.8 4.8"],
  off: [RING, "M5 8h6"],
  tried: ["M5.5 1.5h5", "M6.5 1.5V6L2.7 13a1 1 0 0 0 .9 1.5h8.8a1 1 0 0 0 .9-1.5L9.5 6V1.5", "M4.5 10h7"],
  idle: ["M13.6 9.8A6.2 6.2 0 1 1 6.2 2.4a5 5 0 0 0 7.4 7.4Z"],
};

/** An icon and a word: colour alone carries no information. */
export function badge(tone, word, shape = tone) {
  return h("span", { class: `badge ${tone}` }, icon(shape), word);
}

export function icon(shape) {
  const paths = STROKES[shape].map((d) => s("path", { d }));
  return s("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true" }, paths);
}

/** A reference; lines may break between the model's name and the version selector. */
export function named({ name, uri }) {
  return [
    name,
    document.createElement("wbr"),
    h("span", { class: "muted" }, uri.slice(`models:/${name}`.length)),
  ];
}

// -- numbers

/** Format a number with about three digits. */
export function number(value) {
  if (value == null) return "–";
  if (value === 0) return "0";
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Format seconds, in ms below one second. */
export function duration(seconds) {
  if (seconds == null) return "–";
  return seconds < 1 ? `${number(seconds * 1000)} ms` : `${number(seconds)} s`;
}

export function plural(count, word) {
  return `${count.toLocaleString()} ${word}${count === 1 ? "" : "s"}`;
}

// -- times, in the viewer's zone

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});
const EXACT = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

/** Format the time of day, with the date unless it is today. */
export function clock(date) {
  const today = new Date().toDateString() === date.toDateString();
  return (today ? CLOCK : DAY).format(date);
}

export function exact(date) {
  return `${EXACT.format(date)} (${date.toISOString()})`;
}

/** A time; its tooltip shows it exactly. */
export function moment(text, written = clock) {
  const date = new Date(text);
  return h("time", { datetime: date.toISOString(), title: exact(date) }, written(date));
}

/** Format an age, rounded. */
export function ago(seconds) {
  for (const [length, unit] of [
    [86400, "day"],
    [3600, "hour"],
    [60, "min"],
  ]) {
    if (seconds >= length) {
      const count = Math.floor(seconds / length);
      return `${count} ${unit}${count > 1 && unit !== "min" ? "s" : ""} ago`;
    }
  }
  return seconds < 5 ? "just now" : `${Math.floor(seconds)} s ago`;
}
