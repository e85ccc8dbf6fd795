"use strict";
// One token's way through the layers: the table beside the text, and the pinned tokens whose ways are compared.

// Unpacks what a place shows of a sample: a mapping from block names to numbers, without those the page does not hold.
LL.blocks = async (sample, names) => {
  const held = names.filter((name) => sample.blocks[name]);
  const values = await Promise.all(held.map((name) => LL.unpack(sample.blocks[name])));
  return Object.fromEntries(held.map((name, at) => [name, values[at]]));
};

LL.ranks = (sample, column) => Object.keys(sample.blocks).filter((name) => name.startsWith("top_ids:") && name.endsWith(`|${column}`)).length;

// Blocks that the table of a token reads at a site; modules have none of their own, so the main site stands for them.
LL.pathNames = (text, sample, column) => [
  ...["entropy", "logp_next", "kl_to_final"].map((metric) => `${metric}|${column}`),
  ...Array.from({ length: LL.ranks(sample, column) }, (_, rank) => [`top_ids:${rank}|${column}`, `top_probs:${rank}|${column}`]).flat(),
];

// A probability in percent, to the decimals that the page holds.
LL.share = (share, text) => (Number.isFinite(share) ? `${(100 * share).toFixed(text.share_decimals - 2)}%` : "–");

// The table: a row per layer, the last on top, with the likeliest tokens and the numbers of the policy there.
LL.pathTable = (text, sample, values, column, token, layer) => {
  const row = sample.rows[token], many = text.layers.length, ranks = LL.ranks(sample, column);
  const actual = sample.tokens[token], measures = ["entropy", "logp_next", "kl_to_final"].filter((name) => values[`${name}|${column}`]);
  const heads = { entropy: "entropy", logp_next: "log p", kl_to_final: "KL" };
  const lines = text.layers.map((number, at) => {
    const cell = row * many + at;
    const tops = Array.from({ length: ranks }, (_, rank) => {
      const [id, share] = [values[`top_ids:${rank}|${column}`]?.[cell], values[`top_probs:${rank}|${column}`]?.[cell]];
      return LL.el("span", { class: id === actual ? "top hit" : "top" }, LL.el("code", {}, LL.shown(text.words[id] ?? "")), ` ${LL.share(share, text)}`);
    });
    return LL.el("tr", { class: number === layer ? "here" : "", "data-layer": number }, LL.el("th", { scope: "row" }, String(number)),
      ...(ranks ? [LL.el("td", { class: "tops" }, tops)] : []),
      ...measures.map((name) => LL.el("td", { class: "number", "data-metric": name }, LL.number(values[`${name}|${column}`][cell], text.byName[name].decimals))));
  }).reverse();
  return LL.el("table", { class: "path" }, LL.el("thead", {}, LL.el("tr", {}, ["layer", ...(ranks ? ["likeliest tokens"] : []), ...measures.map((name) => heads[name])].map((name) => LL.el("th", { scope: "col" }, name)))), LL.el("tbody", {}, lines));
};

// Pins are kept in the address as run.sample.token, separated by spaces.
LL.pins = {
  all() { return LL.state.get("pins").split(" ").filter(Boolean).map((pin) => pin.split(".").map(Number)).filter(([run, sample, token]) => (LL.data.texts[run]?.samples?.[sample]?.rows[token] ?? -1) >= 0); },
  has(...pin) { return this.all().some((other) => String(other) === String(pin)); },
  set(pins) { LL.state.set({ pins: pins.map((pin) => pin.join(".")).join(" ") }); },
  toggle(...pin) {
    const there = this.has(...pin);
    this.set(there ? this.all().filter((other) => String(other) !== String(pin)) : [...this.all(), pin]);
    LL.say(there ? "Pin removed." : "Token pinned.");
  },
  name([run, sample, token]) {
    const text = LL.data.texts[run], of = text.samples[sample];
    return `“${LL.shown(text.words[of.tokens[token]])}” at ${of.positions[token]}, sample ${of.id}${LL.data.texts.length > 1 ? `, ${text.name}` : ""}`;
  },
};

// The ways of the pinned tokens, and of the one that is pointed at, through the layers, as a figure with its table.
LL.pinFigure = async (pointed, metric, column) => {
  const all = [...LL.pins.all(), ...(pointed && !LL.pins.has(...pointed) ? [pointed] : [])];
  const series = [], lacking = [];
  for (const [at, pin] of all.entries()) {
    const text = LL.data.texts[pin[0]], sample = text.samples[pin[1]], name = `${metric}|${column}`;
    const values = (await LL.blocks(sample, [name]))[name];
    if (!values) { lacking.push(LL.pins.name(pin)); continue; }
    const many = text.layers.length, first = sample.rows[pin[2]] * many;
    series.push({ name: LL.pins.name(pin), x: text.layers, L: text.L, group: at, pick: {}, mean: [...values.subarray(first, first + many)].map((value) => (Number.isFinite(value) ? value : null)) });
  }
  const about = LL.metric(metric);
  return { id: "pins", title: `Pinned tokens through the layers: ${about.label}`, kind: "lines", series, x: "layer", y: "", unit: about.unit, height: 260,
    note: [`${column}${pointed && !LL.pins.has(...pointed) ? "; the last curve is the token that is pointed at" : ""}`, ...(lacking.length ? [`without ${metric} at ${column}: ${lacking.join(", ")}`] : [])].join("; ") };
};
LL.metric = (name) => LL.data.texts.flatMap((text) => text.metrics ?? []).find((about) => about.name === name);
