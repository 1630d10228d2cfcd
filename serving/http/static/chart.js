// Line charts of the last half hour; a pointer or arrow keys show the values of one step.

import { clock, exact, h, s } from "./elements.js";

const HEIGHT = 150;
const MARGIN = { left: 46, right: 8, top: 16, bottom: 20 };
const SPAN = 1800;
// Half of the width of a label such as 10:20 AM.
const HALF_LABEL = 27;

/** A small line chart without axes. */
export function sparkline(trend) {
  const [width, height] = [96, 22];
  const svg = s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const most = Math.max(...trend);
  if (!(most > 0)) return svg;
  const points = trend.map((value, index) => [
    width - ((trend.length - 1 - index) * width) / 60,
    height - 1 - (value / most) * (height - 3),
  ]);
  const line = points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
  const [first, last] = [points[0][0], points.at(-1)[0]];
  svg.append(
    s("path", { class: "fill", d: `M${line}L${last} ${height}L${first.toFixed(1)} ${height}Z` }),
    s("path", { class: "line", d: `M${line}` }),
  );
  return svg;
}

/**
 * A chart of some of a model's series.
 *
 * `lines` are `{key, label}`; `write` writes a value with its unit; `scale` chooses the axis for some values.
 */
export class Chart {
  constructor({ title, lines, write, scale, note }) {
    Object.assign(this, { lines, write, scale, title });
    this.at = null;
    this.readings = lines.map(() => h("output"));
    this.when = h("span", { class: "when" });
    this.svg = s("svg", { "aria-hidden": "true" });
    this.plot = h(
      "div",
      {
        class: "plot",
        role: "slider",
        tabindex: "0",
        "aria-label": `${title}, at a time`,
        "aria-valuemin": "0",
        "aria-valuemax": "0",
        "aria-valuenow": "0",
        "aria-valuetext": "nothing yet",
        onkeydown: (event) => this.#onKey(event),
        onpointermove: (event) => this.#onPointer(event),
        onpointerleave: () => this.#read(null),
        onblur: () => this.#read(null),
      },
      this.svg,
    );
    this.table = h(
      "details",
      { ontoggle: () => this.#list() },
      h("summary", {}, "As a table"),
      h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `${title}, as a table` }),
    );
    this.element = h(
      "figure",
      { class: "card chart" },
      h("figcaption", {}, h("h3", { title: note }, title), this.when),
      h(
        "p",
        { class: "legend" },
        lines.map(({ key, label }, index) =>
          h(
            "span",
            {},
            s(
              "svg",
              { class: `key ${key}`, viewBox: "0 0 18 4", "aria-hidden": "true" },
              s("path", { d: "M0 2H18" }),
            ),
            `${label} `,
            this.readings[index],
          ),
        ),
      ),
      this.plot,
      this.table,
    );
    new ResizeObserver(() => this.#draw()).observe(this.plot);
  }

  /** Show series, with a mark for each swap: `{at, label}`, the newest first. */
  update(series, marks) {
    this.series = series;
    this.marks = marks;
    this.at = null;
    this.#draw();
    this.#list();
  }

  // -- drawing

  #draw() {
    const width = this.plot.clientWidth;
    if (!this.series || !width) return;
    const { times } = this.series;
    const end = times.at(-1) ?? Date.now() / 1000;
    const values = this.lines.flatMap(({ key }) => this.series[key]).filter((value) => value != null);
    const { ticks, share } = this.scale(values);
    this.x = (time) => MARGIN.left + ((time - end + SPAN) / SPAN) * (width - MARGIN.left - MARGIN.right);
    this.y = (value) => HEIGHT - MARGIN.bottom - share(value) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    this.cursor = s("g", { class: "cursor" });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(
      ...ticks.map((value) => this.#across(value, width)),
      ...tens(end).map((time) => this.#upright(time, width)),
      ...this.marks
        .filter(({ at }) => at > end - SPAN)
        .map((mark, index) => this.#mark(mark, width, this.marks[index - 1])),
      ...this.lines
        .filter(({ key }) => this.#isDrawn(key))
        .map(({ key }) => s("path", { class: `line ${key}`, d: this.#path(key) })),
      this.cursor,
    );
    this.plot.setAttribute("aria-valuemax", Math.max(0, times.length - 1));
    this.#read(this.at);
  }

  #across(value, width) {
    const y = this.y(value);
    const label = s(
      "text",
      { x: MARGIN.left - 6, y: y + 3.5, class: "end" },
      this.write(value).replace(/\.0+(?=\D|$)/, ""),
    );
    return s("g", { class: "grid" }, s("path", { d: `M${MARGIN.left} ${y}H${width - MARGIN.right}` }), label);
  }

  #upright(time, width) {
    const x = this.x(time);
    const label = new Date(time * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
    const tick = s("path", { d: `M${x} ${HEIGHT - MARGIN.bottom}v4` });
    const text = s("text", { x, y: HEIGHT - 4, class: "middle" }, label);
    return s("g", { class: "grid" }, tick, ...(x + HALF_LABEL > width ? [] : [text]));
  }

  /** Mark a swap; omit its label if it overlaps the next one. */
  #mark({ at, label }, width, next) {
    const x = this.x(at);
    const isLast = x > width - 60;
    const isFree = !next || this.x(next.at) - x > 28;
    const text = s("text", { x: isLast ? x - 4 : x + 4, y: 10, class: isLast ? "end" : "" }, label);
    return s("g", { class: "mark" }, s("path", { d: `M${x} 2V${HEIGHT - MARGIN.bottom}` }), isFree && text);
  }

  /** Omit a failure line that has only zeros. */
  #isDrawn(key) {
    return key === this.lines[0].key || this.series[key].some((value) => value > 0);
  }

  #path(key) {
    let drawn = false;
    return this.series[key]
      .map((value, index) => {
        if (value == null) return (drawn = false) || "";
        const command = drawn ? "L" : "M";
        drawn = true;
        // A point between two gaps is a line of length zero; its round ends draw a dot.
        return `${command}${this.x(this.series.times[index]).toFixed(1)} ${this.y(value).toFixed(1)}h0`;
      })
      .join("");
  }

  // -- values of one step

  #onPointer(event) {
    const { times } = this.series ?? { times: [] };
    const place = event.clientX - this.plot.getBoundingClientRect().left;
    const distances = times.map((time) => Math.abs(this.x(time) - place));
    this.#read(times.length ? distances.indexOf(Math.min(...distances)) : null);
  }

  #onKey(event) {
    const last = (this.series?.times.length ?? 0) - 1;
    const steps = {
      ArrowLeft: -1,
      ArrowDown: -1,
      ArrowRight: 1,
      ArrowUp: 1,
      PageDown: -12,
      PageUp: 12,
      Home: -last,
      End: last,
    };
    if (!(event.key in steps) || last < 0) return;
    event.preventDefault();
    this.#read(Math.min(last, Math.max(0, (this.at ?? last) + steps[event.key])));
  }

  /** Show the values of one step, by default the last one. */
  #read(at) {
    this.at = at;
    const { times } = this.series ?? { times: [] };
    const index = at ?? times.length - 1;
    if (index < 0) return;
    const date = new Date(times[index] * 1000);
    this.lines.forEach(
      ({ key }, line) => (this.readings[line].textContent = this.write(this.series[key][index])),
    );
    this.when.textContent = at == null ? "now" : clock(date);
    this.when.title = exact(date);
    const values = this.lines.map(({ key, label }) => `${label} ${this.write(this.series[key][index])}`);
    this.plot.setAttribute("aria-valuenow", index);
    this.plot.setAttribute("aria-valuetext", `${clock(date)}: ${values.join(", ")}`);
    const x = this.x?.(times[index]);
    this.cursor?.replaceChildren(
      ...(at == null ? [] : [s("path", { d: `M${x} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}` })]),
    );
  }

  #list() {
    if (!this.table.open || !this.series) return;
    const cells = (index) => this.lines.map(({ key }) => h("td", {}, this.write(this.series[key][index])));
    const rows = this.series.times.map((time, index) =>
      h("tr", {}, h("th", { scope: "row" }, clock(new Date(time * 1000))), cells(index)),
    );
    const heads = this.lines.map(({ label }) => h("th", { scope: "col" }, label));
    this.table.lastChild.replaceChildren(
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Until"), heads)),
        h("tbody", {}, rows.reverse()),
      ),
    );
  }
}

/** An axis from zero to a round number of at least `least`. */
export const linear = (least) => (values) => {
  const most = Math.max(least, ...values);
  const unit = 10 ** Math.floor(Math.log10(most));
  const top = [1, 2, 4, 5, 10].map((step) => step * unit).find((step) => step >= most);
  return { ticks: [0, top / 2, top], share: (value) => value / top };
};

/** A logarithmic axis, on which one slow step does not hide the others. */
export function logarithmic(values) {
  const logs = values.filter((value) => value > 0).map(Math.log10);
  const low = Math.floor(Math.min(-3, ...logs));
  const high = Math.max(low + 2, Math.ceil(Math.max(-1, ...logs)));
  const ticks = Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index));
  return { ticks, share: (value) => Math.max(0, (Math.log10(value) - low) / (high - low)) };
}

/** Return the full ten minutes in the half hour before `end`. */
function tens(end) {
  const last = Math.floor(end / 600) * 600;
  return [last - 1200, last - 600, last].filter((time) => time > end - SPAN + 60 && time < end - 30);
}
