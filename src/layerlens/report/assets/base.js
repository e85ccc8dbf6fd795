"use strict";
// What all parts of the page share: its data, elements, numbers as they are written, and the state that the address keeps.
const LL = { data: JSON.parse(document.getElementById("data").textContent) };

// An element with attributes (on... are listeners) and children; whatever is no element becomes text, never markup.
LL.el = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
};

LL.select = (label, options, value, change) => {
  const made = LL.el("select", { onchange: () => change(made.value) });
  for (const [key, text] of options) made.append(LL.el("option", { value: key, selected: key === value }, text));
  return LL.el("label", { class: "pick" }, LL.el("span", {}, label), made);
};

LL.button = (text, click, attributes = {}) => LL.el("button", { type: "button", onclick: click, ...attributes }, text);

// Numbers with four significant digits, as all figures of means show them; `decimals` fixes the digits after the point instead.
LL.number = (value, decimals) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const text = decimals === undefined ? String(Number(value.toPrecision(4))) : value.toFixed(decimals);
  return text.replace("-", "−");
};
LL.withUnit = (value, unit, decimals) => LL.number(value, decimals) + (unit && Number.isFinite(value) ? ` ${unit}` : "");
LL.interval = (low, high) => (low === null || high === null || low === undefined ? "" : ` (${LL.number(low)} to ${LL.number(high)})`);

// A token as it is shown: line breaks, tabs, nothing but blanks, and nothing at all have signs.
LL.shown = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍").replace(/^ +$/, (blank) => "␣".repeat(blank.length)) || "∅";

LL.say = (text) => { document.getElementById("news").textContent = text; };
LL.theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
LL.isDark = () => LL.theme("dark") === "1";

// The state: plain texts by key, kept in the fragment of the address, so that a link opens the same view.
LL.state = {
  values: new URLSearchParams(location.hash.slice(1)),
  listeners: [],
  get(key, otherwise = "") { return this.values.get(key) ?? otherwise; },
  number(key, otherwise) { const found = Number.parseFloat(this.get(key)); return Number.isFinite(found) ? found : otherwise; },
  set(changes) {
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "") this.values.delete(key);
      else this.values.set(key, value);
    }
    this.keep();
    for (const listener of this.listeners) listener(new Set(Object.keys(changes)));
  },
  keep() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      // a page inside a frame of a notebook has no address of its own
      try { history.replaceState(null, "", `#${this.values}`); } catch { /* then it keeps no state */ }
    }, 120);
  },
  listen(listener) { this.listeners.push(listener); },
};
addEventListener("hashchange", () => {
  const found = new URLSearchParams(location.hash.slice(1));
  if (String(found) === String(LL.state.values)) return;
  const keys = new Set([...LL.state.values.keys(), ...found.keys()]);
  LL.state.values = found;
  for (const listener of LL.state.listeners) listener(keys);
});
