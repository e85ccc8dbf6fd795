"use strict";
// The text: tokens as chips coloured by a metric at a layer and site, with the way of the one that is pointed at beside them.
LL.columns = ["resid_pre", "attn_in", "attn_out", "resid_mid", "ffn_in", "ffn_out", "resid_post", "attn", "ffn", "layer"];
LL.segments = { p: "prompt", t: "thinking", a: "answer" };

// What the state asks for, made to fit what the runs hold.
LL.view = () => {
  const state = LL.state, texts = LL.data.texts, shown = texts.map((text, at) => [text, at]).filter(([text]) => !text.missing);
  const run = shown.some(([, at]) => at === state.number("run")) ? state.number("run") : shown[0][1];
  const text = texts[run], filter = state.get("filter", "all");
  const samples = text.samples.map((sample, at) => at).filter((at) => filter === "all" || text.samples[at].right === (filter === "right"));
  const sample = samples.includes(state.number("sample")) ? state.number("sample") : samples[0] ?? 0;
  const about = text.byName[state.get("metric")] ?? text.metrics[0];
  const columns = LL.columns.filter((name) => about.columns.includes(name));
  const column = columns.includes(state.get("site")) ? state.get("site") : columns.includes(text.main) ? text.main : columns.at(-1);
  const wanted = state.number("layer", text.layers.at(-1)), layer = text.layers.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best));
  const beside = state.get("beside") !== "" && texts[state.number("beside")]?.samples ? state.number("beside") : null;
  return { run, text, filter, samples, sample, about, columns, column, layer, beside, site: text.main === column || !["attn", "ffn", "layer"].includes(column) ? column : text.main };
};

// Ends of the colours: those of the whole run, or of what is shown.
LL.ends = (about, values) => {
  const finite = LL.state.get("fit") ? [...values].filter(Number.isFinite) : [];
  if (!finite.length) return [about.low, about.high];
  const [low, high] = [finite.reduce((a, b) => Math.min(a, b)), finite.reduce((a, b) => Math.max(a, b))], reach = Math.max(Math.abs(low), Math.abs(high));
  return about.diverging ? [-reach, reach] : [low, high > low ? high : low + 1];
};

// A pane with the text of one sample of one run.
LL.pane = (point) => {
  const root = LL.el("div", { class: "pane card" });
  const lack = LL.el("p", { class: "hint" });
  let at = null, chips = [], current = -1, list = null;

  const build = (run, number) => {
    const text = LL.data.texts[run], sample = text.samples[number];
    at = { run, number, sample };
    current = -1;
    const badge = sample.right === null ? null : LL.el("span", { class: sample.right ? "right" : "wrong" }, sample.right ? "✓ right" : "✗ wrong");
    chips = sample.tokens.map((word, token) => LL.el("span", { role: "option", "aria-selected": "false", id: `chip-${run}-${number}-${token}`, class: "chip", "data-token": token, "aria-label": text.words[word].trim() ? null : LL.shown(text.words[word]) }, text.words[word].replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t") || "∅"));
    const groups = [];
    [...sample.segments].forEach((code, token) => {
      const kind = code === "-" ? groups.at(-1)?.kind ?? ([...sample.segments].find((other) => other !== "-") ?? "p") : code;
      if (groups.at(-1)?.kind !== kind) groups.push({ kind, chips: [] });
      groups.at(-1).chips.push(chips[token]);
    });
    list = LL.el("div", { class: "chips", role: "listbox", tabindex: "0", "aria-label": `Tokens of sample ${sample.id}: arrows move, Enter pins`, "aria-multiselectable": "true" },
      groups.map(({ kind, chips: inside }) => LL.el("div", { role: "group", class: `segment ${LL.segments[kind]}`, "aria-label": LL.segments[kind] }, inside)));
    list.addEventListener("pointerover", (event) => move(event.target.dataset?.token, event));
    list.addEventListener("click", (event) => event.target.dataset?.token && pin(Number(event.target.dataset.token)));
    list.addEventListener("keydown", keys);
    root.replaceChildren(
      LL.el("h3", {}, `${LL.data.texts.length > 1 ? `${text.name}, ` : ""}sample ${sample.id} `, badge),
      ...(sample.truth ? [LL.el("p", { class: "truth" }, `ground truth: ${sample.truth}`)] : []),
      ...(sample.before ? [LL.el("p", { class: "before" }, sample.before)] : []), lack, list);
  };
  const pin = (token) => at.sample.rows[token] >= 0 && LL.pins.toggle(at.run, at.number, token);
  const move = (token, event) => {
    if (token === undefined || Number(token) === current) return;
    show(Number(token));
    point(at, Number(token), event);
  };
  const show = (token) => {
    chips[current]?.classList.remove("current");
    current = token;
    chips[token]?.classList.add("current");
    list.setAttribute("aria-activedescendant", chips[token]?.id ?? "");
  };
  const keys = (event) => {
    const line = (direction) => {
      const from = chips[Math.max(current, 0)], across = from.offsetLeft;
      const next = chips.filter((chip) => (direction > 0 ? chip.offsetTop > from.offsetTop + 4 : chip.offsetTop < from.offsetTop - 4));
      const top = direction > 0 ? next[0]?.offsetTop : next.at(-1)?.offsetTop;
      const row = next.filter((chip) => Math.abs(chip.offsetTop - top) < 5);
      return row.length ? chips.indexOf(row.reduce((best, chip) => (Math.abs(chip.offsetLeft - across) < Math.abs(best.offsetLeft - across) ? chip : best))) : current;
    };
    const to = { ArrowRight: () => current + 1, ArrowLeft: () => current - 1, ArrowDown: () => line(1), ArrowUp: () => line(-1), Home: () => 0, End: () => chips.length - 1 }[event.key];
    if (to) {
      event.preventDefault();
      const token = Math.min(Math.max(to(), 0), chips.length - 1);
      move(token, event);
      chips[token].scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (current >= 0) pin(current);
    }
  };
  const paint = async (about, column, layer) => {
    const { sample, run } = at, text = LL.data.texts[run], name = `${about.name}|${column}`;
    const values = (await LL.blocks(sample, [name]))[name], many = text.layers.length, place = text.layers.indexOf(layer);
    if (sample !== at.sample) return;
    const seen = values && place >= 0 ? sample.rows.map((row) => (row < 0 ? NaN : values[row * many + place])) : [];
    const [low, high] = LL.ends(about, seen);
    const dark = LL.isDark();
    chips.forEach((chip, token) => {
      const { ground, ink } = LL.paint(about.diverging ? "diverging" : "sequential", seen[token] ?? NaN, low, high, dark);
      chip.style.background = ground;
      chip.style.color = ink;
      chip.dataset.value = Number.isFinite(seen[token]) ? seen[token].toFixed(about.decimals) : "";
    });
    lack.textContent = values ? "" : `The page holds no ${about.label} at ${column} of this run.`;
    root.dataset.painted = `${name}|${layer}`;
    return [low, high];
  };
  const mark = () => chips.forEach((chip, token) => {
    const pinned = at.sample.rows[token] >= 0 && LL.pins.has(at.run, at.number, token);
    chip.classList.toggle("pinned", pinned);
    chip.setAttribute("aria-selected", String(pinned));
  });
  return { root, build, paint, mark, show, get at() { return at; } };
};

// The whole part of the page.
LL.texts = (place) => {
  const texts = LL.data.texts;
  for (const text of texts) if (text.metrics) text.byName = Object.fromEntries(text.metrics.map((about) => [about.name, about]));
  place.append(LL.el("h2", {}, "Text"));
  for (const text of texts.filter((one) => one.missing)) place.append(LL.el("p", { class: "missing" }, `${text.name}: not shown: ${text.missing}`));
  if (texts.every((text) => text.missing)) return { draw() {} };

  const controls = LL.el("div", { class: "controls card" }), notes = LL.el("div", { class: "notes" });
  const legend = LL.el("div", { class: "legend" });
  const path = LL.el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The token that is pointed at, through the layers" });
  const title = LL.el("h3", {}, "Policy through the layers"), about = LL.el("p", { class: "hint" }, "Point at a token, or move to it with the arrow keys; Enter or a click pins it.");
  const pins = LL.el("div", { class: "pins card" });
  let pointed = null, turn = 0;

  const point = async (at, token, event) => {
    const began = performance.now(), view = LL.view(), mine = ++turn, text = texts[at.run];
    const other = panes.find((pane) => pane.at && pane.at !== at);
    if (other && String(other.at.sample.positions) === String(at.sample.positions) && other.at.sample.tokens.every((word, place) => texts[other.at.run].words[word] === text.words[at.sample.tokens[place]])) other.show(token);
    pointed = [at.run, at.number, token];
    const column = text.main === view.site || text.metrics.some((one) => one.columns.includes(view.site)) ? view.site : text.main;
    const values = await LL.blocks(at.sample, LL.pathNames(text, at.sample, column));
    if (mine !== turn) return;
    const word = LL.shown(text.words[at.sample.tokens[token]]);
    title.textContent = `“${word}” at position ${at.sample.positions[token]}`;
    if (at.sample.rows[token] < 0) {
      about.textContent = "No policy of the run predicts this token.";
      path.replaceChildren();
    } else {
      about.textContent = `${LL.segments[at.sample.segments[token]] ?? "text"} · what the policies at ${column} of the position before give it${text.top ? "" : "; the token itself is framed"}`;
      const { scrollTop } = path, fresh = path.dataset.layer !== String(view.layer);
      path.replaceChildren(LL.pathTable(text, at.sample, values, column, token, view.layer));
      path.scrollTop = fresh ? path.querySelector(".here").offsetTop - path.clientHeight / 2 : scrollTop;
      Object.assign(path.dataset, { token, layer: view.layer });
    }
    grid.follow(at, token);
    if (event) LL.pointerMs = performance.now() - began;
    clearTimeout(point.timer);
    point.timer = setTimeout(drawPins, 160);
  };
  path.addEventListener("click", (event) => {
    const layer = event.target.closest("tr")?.dataset.layer;
    if (layer) LL.state.set({ layer });
  });

  const panes = [LL.pane(point), LL.pane(point)];
  const grid = LL.grid(point);
  const held = LL.el("div"), curves = LL.figure({ id: "pins", title: "", kind: "lines", series: [] });
  curves.hidden = true;
  curves.classList.remove("card");
  pins.append(LL.el("h3", {}, "Pins"), held, curves);
  const drawPins = async () => {
    const view = LL.view(), spec = await LL.pinFigure(pointed && texts[pointed[0]].samples[pointed[1]].rows[pointed[2]] >= 0 ? pointed : null, view.about.name, view.column);
    const list = LL.pins.all();
    const hint = list.length ? null : LL.el("p", { class: "hint" }, "Pin tokens, of any sample or run, to keep and compare their curves.");
    held.replaceChildren(hint ?? LL.el("ul", {}, list.map((pin) => LL.el("li", {}, LL.button(LL.pins.name(pin), () => go(pin), { class: "link" }), LL.button("×", () => LL.pins.toggle(...pin), { "aria-label": `Remove the pin ${LL.pins.name(pin)}` })))));
    curves.hidden = !spec.series.length;
    if (spec.series.length) await curves.figure.update(spec);
    curves.dataset.drawn = "yes";
  };
  const go = ([run, sample, token]) => { LL.state.set({ run, sample, filter: "all" }); panes[0].show(token); point(panes[0].at, token); };

  const range = (label, id, options, value, shown, change) => {
    const output = LL.el("output"), input = LL.el("input", { type: "range", min: 0, max: options.length - 1, id, disabled: options.length < 2, oninput: () => change(options[input.value]) });
    input.follow = (now) => { // the slider shows what is chosen, by whatever means
      input.value = options.indexOf(now);
      output.textContent = shown(now);
      input.setAttribute("aria-valuetext", shown(now));
    };
    input.follow(value);
    return LL.el("label", { class: "pick range" }, LL.el("span", {}, label), input, output);
  };
  const arrange = () => {
    const view = LL.view(), { text } = view, focus = document.activeElement?.dataset?.control ?? document.activeElement?.id;
    const name = (at) => `${text.samples[at].right === null ? "" : text.samples[at].right ? "✓ " : "✗ "}${text.samples[at].id}`;
    const step = (by) => { const at = view.samples.indexOf(view.sample) + by; if (view.samples[at] !== undefined) LL.state.set({ sample: view.samples[at] }); };
    const runs = texts.map((one, at) => [one, at]).filter(([one]) => !one.missing).map(([one, at]) => [String(at), one.name]);
    const known = text.samples.some((sample) => sample.right !== null);
    const made = [
      runs.length > 1 ? LL.select("run", runs, String(view.run), (run) => LL.state.set({ run })) : null,
      LL.select("sample", view.samples.map((at) => [String(at), name(at)]), String(view.sample), (sample) => LL.state.set({ sample })),
      LL.el("span", { class: "pair" }, LL.button("‹", () => step(-1), { "aria-label": "Sample before", "data-control": "before" }), LL.button("›", () => step(1), { "aria-label": "Next sample", "data-control": "after" })),
      known ? LL.select("answers", [["all", "all"], ["right", "right"], ["wrong", "wrong"]], view.filter, (filter) => LL.state.set({ filter, sample: null })) : null,
      LL.select("colour by", text.metrics.map((one) => [one.name, one.label]), view.about.name, (metric) => LL.state.set({ metric })),
      range("layer", "layer", text.layers, view.layer, (layer) => `${layer} of ${text.L}`, (layer) => LL.state.set({ layer })),
      range(view.columns.every((one) => ["attn", "ffn", "layer"].includes(one)) ? "module" : "site", "site", view.columns, view.column, (column) => column, (site) => LL.state.set({ site })),
      runs.length > 1 ? LL.select("beside it", [["", "nothing"], ...runs], view.beside === null ? "" : String(view.beside), (beside) => LL.state.set({ beside })) : null,
      LL.el("label", { class: "pick" }, LL.el("input", { type: "checkbox", "data-control": "fit", checked: Boolean(LL.state.get("fit")), onchange: (event) => LL.state.set({ fit: event.target.checked ? "1" : "" }) }), LL.el("span", {}, "colours fit what is shown")),
    ].filter(Boolean);
    controls.replaceChildren(...made, legend);
    controls.querySelectorAll("select").forEach((select) => { select.dataset.control = select.previousSibling.textContent; });
    if (focus) controls.querySelector(`[data-control="${CSS.escape(focus)}"], #${CSS.escape(focus)}`)?.focus();
    notes.replaceChildren(...[text.right, text.top, view.samples.length ? "" : `No answer of this run is ${view.filter}.`].filter(Boolean).map((line) => LL.el("p", { class: "hint" }, line)),
      ...(text.left_out.length ? [LL.el("details", {}, LL.el("summary", {}, `Left out to keep the page under ${text.megabytes} MB; --megabytes N holds more`), LL.el("p", { class: "hint" }, text.left_out.join("; ")))] : []));
  };
  const draw = async (keys = null) => {
    const view = LL.view(), touched = (...names) => keys === null || names.some((name) => keys.has(name));
    if (touched("run", "sample", "filter", "metric", "beside", "fit")) arrange();
    controls.querySelector("#layer").follow(view.layer);
    controls.querySelector("#site").follow(view.column);
    if (touched("run", "sample", "filter", "beside")) {
      panes[0].build(view.run, view.sample);
      const other = view.beside === null ? null : texts[view.beside];
      panes[1].root.hidden = !other;
      if (other) {
        const id = texts[view.run].samples[view.sample].id, same = other.samples.findIndex((sample) => sample.id === id);
        panes[1].build(view.beside, same >= 0 ? same : Math.min(view.sample, other.samples.length - 1));
      }
    }
    const ends = await panes[0].paint(view.about, view.column, view.layer);
    if (!panes[1].root.hidden) await panes[1].paint(view.about, view.column, view.layer);
    for (const pane of panes) if (!pane.root.hidden && pane.at) pane.mark();
    if (ends) legend.replaceChildren(LL.el("span", {}, LL.number(ends[0])), LL.el("i", { style: `background:${LL.gradient(view.about.diverging ? "diverging" : "sequential")}` }), LL.el("span", {}, LL.withUnit(ends[1], view.about.unit)), LL.el("span", { class: "hint" }, `to ${view.about.decimals} decimals`));
    await grid.show(panes[0].at, view);
    if (keys === null || touched("pins", "metric", "site", "run", "sample", "theme")) await drawPins();
    if (pointed && touched("layer", "site", "metric")) {
      const pane = panes.find((one) => one.at && one.at.run === pointed[0] && one.at.number === pointed[1]);
      if (pane) await point(pane.at, pointed[2]);
    }
    place.dataset.drawn = `${view.run}.${view.sample}.${view.about.name}.${view.column}.${view.layer}`;
  };
  place.append(controls, notes, LL.el("div", { class: "reading" }, LL.el("div", { class: "panes" }, panes.map((pane) => pane.root)), LL.el("aside", { class: "card aside" }, title, about, path)), LL.el("div", { class: "reading" }, grid.root, pins));
  return { draw };
};
