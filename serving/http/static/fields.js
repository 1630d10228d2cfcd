// Form fields: one for each column or parameter, generated from its JSON Schema.

import { h, write } from "./elements.js";

/** Create the fields of an object's schema, with the values of an example. */
export function createFields(group, schema, example) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(
    ([name, property]) =>
      new Field({ group, name, schema: property, required: required.has(name), example: example[name] }),
  );
}

/** Create one field for a row in JSON: the contract of a model that is not loaded is unknown. */
export function rawField() {
  const schema = { type: "object", description: "the row as a JSON object; the request loads the model" };
  return new Field({ group: "raw", name: "Row", schema, required: true });
}

let count = 0;

/** One value: a label, an input for its schema, a hint, and a validation message. */
class Field {
  constructor({ group, name, schema, required, example }) {
    const types = [schema.type ?? (schema.anyOf ?? []).map(({ type }) => type)].flat();
    const [type] = types.filter((name) => name !== "null");
    Object.assign(this, { name, schema, required, type, id: `${group} ${name} ${JSON.stringify(schema)}` });
    this.isParam = group === "param";
    this.isRaw = group === "raw";
    const id = `field-${++count}`;
    this.input = this.#createInput(types.includes("null") || !required);
    this.input.id = id;
    this.input.setAttribute("aria-describedby", `${id}-hint ${id}-fault`);
    if (example !== undefined) this.#fill(example);
    this.message = h("span", { class: "fault", id: `${id}-fault` });
    const label = h(
      "label",
      { for: id },
      name,
      schema.unit && h("span", { class: "muted" }, ` in ${schema.unit}`),
    );
    const hint = h("span", { class: "hint muted", id: `${id}-hint` }, this.#hint());
    const isBox = this.input.type === "checkbox";
    this.element = h(
      "div",
      { class: `field${this.#isLarge() ? " large" : ""}` },
      isBox ? [h("span", { class: "box" }, this.input, label)] : [label, this.input],
      hint,
      this.message,
    );
  }

  #createInput(optional) {
    const { schema, type } = this;
    if (schema.enum)
      return select([...(optional ? [""] : []), ...schema.enum.map((value) => JSON.stringify(value))]);
    if (type === "boolean")
      return optional ? select(["", "true", "false"]) : h("input", { type: "checkbox" });
    if (type === "number" || type === "integer") {
      const [min, max] = [
        schema.minimum ?? schema.exclusiveMinimum,
        schema.maximum ?? schema.exclusiveMaximum,
      ];
      const step = schema.multipleOf ?? (type === "integer" ? 1 : "any");
      return h("input", { type: "number", min: limit(min), max: limit(max), step, inputmode: "decimal" });
    }
    if (type === "string" && schema.format === "date-time")
      return h("input", { type: "datetime-local", step: "1" });
    if (type === "string" && schema.format === "date") return h("input", { type: "date" });
    if (type === "string") return h("input", { type: "text", autocomplete: "off", spellcheck: "false" });
    return h("textarea", { rows: this.isRaw ? 6 : 3, autocomplete: "off", spellcheck: "false" });
  }

  #isLarge() {
    return this.input.tagName === "TEXTAREA";
  }

  #hint() {
    const { schema } = this;
    const [low, high] = [limit(schema.minimum), limit(schema.maximum)];
    const [above, below] = [limit(schema.exclusiveMinimum), limit(schema.exclusiveMaximum)];
    const bounds = [
      low != null && `at least ${low}`,
      above != null && `above ${above}`,
      high != null && `at most ${high}`,
      below != null && `below ${below}`,
    ];
    const kind = this.#isLarge() && !this.isRaw ? `${this.type ?? "any value"}, as JSON` : null;
    return [schema.description, kind, bounds.filter(Boolean).join(", "), !this.required && "optional"]
      .filter(Boolean)
      .join(" · ");
  }

  #fill(value) {
    const { input } = this;
    if (value === null) return;
    if (input.type === "checkbox") input.checked = value;
    else if (input.tagName === "SELECT" || this.#isLarge()) input.value = JSON.stringify(value);
    else input.value = String(value);
    if (input.type.startsWith("date") && input.value === "") {
      input.type = "text"; // this kind of input does not support the value
      input.value = String(value);
    }
  }

  /** Return the value as JSON; null if it is absent. */
  text() {
    const { input } = this;
    if (input.type === "checkbox") return String(input.checked);
    const text = input.value.trim();
    if (text === "" && !(this.required && this.type === "string" && input.type === "text")) return null;
    const isQuoted = input.tagName === "INPUT" && input.type !== "number";
    return isQuoted ? JSON.stringify(input.value) : text;
  }

  /** Return the value as query parameters; a list repeats the parameter. */
  query() {
    const text = this.text();
    const value = text == null ? null : parsed(text);
    if (Array.isArray(value))
      return value.map((item) => [this.name, typeof item === "string" ? item : JSON.stringify(item)]);
    return text == null ? [] : [[this.name, typeof value === "string" ? value : text]];
  }

  /** Return why the value cannot be sent, or an empty text. */
  problem() {
    if (this.input.validity.badInput)
      return this.input.type === "number" ? "Not a number." : "Not a date and time.";
    return this.#isLarge() && this.text() != null && parsed(this.text()) === null && this.text() !== "null"
      ? "Not valid JSON."
      : "";
  }

  fault(message) {
    write(this.message, message);
    if (message) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
  }

  focus() {
    this.input.focus();
  }

  value() {
    return this.input.type === "checkbox" ? this.input.checked : this.input.value;
  }

  restore(value) {
    if (this.input.type === "checkbox") this.input.checked = value;
    else this.input.value = value;
  }
}

function select(values) {
  return h(
    "select",
    {},
    values.map((value) => h("option", { value }, value === "" ? "–" : String(parsed(value)))),
  );
}

/** Return a bound; null for the bounds of the integer types, which carry no information. */
function limit(value) {
  return value == null || Math.abs(value) >= 2147483647 ? null : value;
}

/** Parse JSON; return null for invalid JSON. */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
