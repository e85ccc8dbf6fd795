"use strict";
// Layers × tokens of a sample on a canvas that draws what is in view: scrolled, zoomed, with the likeliest token in the cell.
LL.grid = (point) => {
  const LEFT = 40, canvas = LL.el("canvas", { "aria-hidden": "true" }), space = LL.el("div", { class: "space" }, canvas);
  const frame = LL.el("div", { class: "grid", tabindex: "0", role: "application", "aria-label": "Layers by tokens: arrows move, Enter pins, plus and minus zoom", "aria-describedby": "cell" }, space);
  const cell = LL.el("p", { class: "cell", id: "cell", role: "status", "aria-live": "polite" }, "Point at a cell.");
  const zoom = LL.el("input", { type: "range", min: 4, max: 110, "aria-label": "Width of a cell", oninput: () => LL.state.set({ cell: zoom.value }) });
  const root = LL.el("div", { class: "card" }, LL.el("h3", {}, "Layers × tokens"), LL.el("div", { class: "buttons" },
    LL.button("−", () => step(1 / 1.4), { "aria-label": "Narrower cells" }), zoom, LL.button("+", () => step(1.4), { "aria-label": "Wider cells" }),
    LL.button("PNG", () => canvas.toBlob((blob) => LL.save(blob, "layerlens-grid.png")), { "aria-label": "Save as PNG: layers by tokens, as in view" })), frame, cell);
  let TOP = 66, at = null, view = null, values = null, ids = null, shares = null, ends = [0, 1], here = { token: -1, layer: -1 }, waiting = false;

  const width = () => Math.min(110, Math.max(4, LL.state.number("cell", 56)));
  const height = () => (width() < 20 ? 12 : 20);
  const step = (factor) => LL.state.set({ cell: Math.round(Math.min(110, Math.max(4, width() * factor))) });
  const layers = () => LL.data.texts[at.run].layers;
  const cut = (text, room) => (text.length * 7 <= room ? text : room < 14 ? "" : `${text.slice(0, Math.floor(room / 7) - 1)}…`);

  const draw = () => {
    waiting = false;
    if (!at || !frame.clientWidth) return;
    TOP = width() < 30 ? 66 : 42; // the names of tokens stand upright above narrow columns
    const [w, h, many] = [width(), height(), layers().length], text = LL.data.texts[at.run], sample = at.sample, tokens = sample.tokens.length;
    space.style.width = `${LEFT + tokens * w}px`;
    space.style.height = `${TOP + many * h}px`;
    const ratio = devicePixelRatio || 1, [wide, high] = [frame.clientWidth, Math.min(frame.clientHeight, TOP + many * h)];
    canvas.width = wide * ratio; canvas.height = high * ratio;
    canvas.style.width = `${wide}px`; canvas.style.height = `${high}px`;
    const pen = canvas.getContext("2d"), [ink, soft, ground] = ["ink", "soft", "card"].map(LL.theme), map = view.about.diverging ? "diverging" : "sequential", dark = LL.isDark();
    pen.scale(ratio, ratio);
    pen.fillStyle = ground;
    pen.fillRect(0, 0, wide, high);
    pen.font = "11px ui-monospace, monospace";
    pen.textBaseline = "middle";
    const first = Math.floor(frame.scrollLeft / w), last = Math.min(tokens, Math.ceil((frame.scrollLeft + wide) / w));
    for (let token = first; token < last; token++) {
      const x = LEFT + token * w - frame.scrollLeft, row = sample.rows[token];
      for (let place = 0; place < many; place++) {
        const y = TOP + (many - 1 - place) * h - frame.scrollTop;
        if (y + h < TOP || y > high) continue;
        const value = row < 0 || !values ? NaN : values[row * many + place], { ground: fill, ink: on } = LL.paint(map, value, ...ends, dark);
        if (fill !== "transparent") { pen.fillStyle = fill; pen.fillRect(x, y, w - (w > 8 ? 1 : 0), h - 1); }
        if (w >= 30 && row >= 0 && (ids || Number.isFinite(value))) {
          pen.fillStyle = fill === "transparent" ? ink : on;
          pen.fillText(cut(ids ? LL.shown(text.words[ids[row * many + place]]) : value.toFixed(view.about.decimals), w - 6), x + 3, y + h / 2);
        }
      }
    }
    if (here.token >= 0) {
      pen.strokeStyle = ink; pen.lineWidth = 2;
      pen.strokeRect(LEFT + here.token * w - frame.scrollLeft, TOP - frame.scrollTop, w, many * h);
      if (here.layer >= 0) pen.strokeRect(LEFT + here.token * w - frame.scrollLeft + 1, TOP + (many - 1 - here.layer) * h - frame.scrollTop + 1, w - 2, h - 2);
    }
    pen.fillStyle = ground;
    pen.fillRect(0, 0, wide, TOP); pen.fillRect(0, 0, LEFT, high);
    const every = Math.ceil(12 / w);
    for (let token = first; token < last; token++) {
      const x = LEFT + token * w - frame.scrollLeft;
      if (x < LEFT - 1 || token % every) continue;
      pen.fillStyle = sample.segments[token] === "p" || sample.segments[token] === "-" ? soft : ink;
      const word = LL.shown(text.words[sample.tokens[token]]);
      if (w >= 30) pen.fillText(cut(word, w - 4), x + 3, TOP - 10);
      else { pen.save(); pen.translate(x + Math.min(w, 12) / 2, TOP - 4); pen.rotate(-Math.PI / 2); pen.fillText(word.slice(0, 8), 0, 0); pen.restore(); }
      if (token && w >= 30 && sample.segments[token] !== sample.segments[token - 1] && LL.segments[sample.segments[token]]) pen.fillText(`▸ ${LL.segments[sample.segments[token]]}`, x + 3, TOP - 30);
    }
    const apart = Math.ceil(13 / h);
    layers().forEach((layer, place) => {
      const y = TOP + (many - 1 - place) * h + h / 2 - frame.scrollTop;
      if (y < TOP || (layer % apart && layer !== view.layer)) return;
      pen.fillStyle = layer === view.layer ? ink : soft;
      pen.font = `${layer === view.layer ? "bold " : ""}11px system-ui, sans-serif`;
      pen.textAlign = "right"; pen.fillText(String(layer), LEFT - 6, y); pen.textAlign = "left";
    });
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = soft; pen.fillText("layer", 4, TOP - 10);
    frame.dataset.drawn = `${first}-${last}`;
  };
  const ask = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };

  const tell = () => {
    const text = LL.data.texts[at.run], sample = at.sample, row = sample.rows[here.token];
    if (here.token < 0 || here.layer < 0) return;
    const place = row * layers().length + here.layer, word = LL.shown(text.words[sample.tokens[here.token]]);
    const top = ids && row >= 0 ? ` · likeliest “${LL.shown(text.words[ids[place]])}” ${LL.share(shares[place], text)}` : "";
    cell.textContent = row < 0 ? `“${word}”: no policy of the run predicts this token` : `“${word}”, layer ${layers()[here.layer]} · ${view.about.label}: ${LL.withUnit(values?.[place] ?? NaN, view.about.unit, view.about.decimals)}${top}`;
  };
  const move = (token, layer, event) => {
    const same = token === here.token;
    here = { token: Math.min(Math.max(token, 0), at.sample.tokens.length - 1), layer: Math.min(Math.max(layer, 0), layers().length - 1) };
    ask(); tell();
    if (!same) point(at, here.token, event);
  };
  const spot = (event) => {
    const box = frame.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    if (!at || x < LEFT || y < TOP) return null;
    const token = Math.floor((x - LEFT + frame.scrollLeft) / width()), layer = layers().length - 1 - Math.floor((y - TOP + frame.scrollTop) / height());
    return token < at.sample.tokens.length && layer >= 0 ? [token, layer] : null;
  };
  const pin = (token) => at.sample.rows[token] >= 0 && LL.pins.toggle(at.run, at.number, token);
  frame.addEventListener("pointermove", (event) => { const found = spot(event); if (found && (found[0] !== here.token || found[1] !== here.layer)) move(...found, event); });
  frame.addEventListener("click", (event) => { const found = spot(event); if (found) { LL.state.set({ layer: layers()[found[1]] }); pin(found[0]); } });
  frame.addEventListener("scroll", ask);
  frame.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); step(event.deltaY < 0 ? 1.15 : 1 / 1.15); } }, { passive: false });
  frame.addEventListener("keydown", (event) => {
    const by = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (by) {
      move(here.token + by[0], (here.layer < 0 ? layers().indexOf(view.layer) : here.layer) + by[1], event);
      const x = here.token * width(), y = (layers().length - 1 - here.layer) * height();
      frame.scrollLeft = Math.min(x, Math.max(frame.scrollLeft, x + width() + LEFT - frame.clientWidth));
      frame.scrollTop = Math.min(y, Math.max(frame.scrollTop, y + height() + TOP - frame.clientHeight));
    } else if (event.key === "Enter" && here.token >= 0) { LL.state.set({ layer: layers()[here.layer] }); pin(here.token); }
    else if (event.key === "+" || event.key === "-") step(event.key === "+" ? 1.4 : 1 / 1.4);
    else return;
    event.preventDefault();
  });
  for (const change of ["beforeprint", "afterprint"]) addEventListener(change, draw);
  new ResizeObserver(ask).observe(frame);
  LL.state.listen((keys) => (keys.has("cell") || keys.has("theme")) && (zoom.value = width(), ask()));

  return {
    root,
    async show(pane, wanted) {
      const fresh = at?.sample !== pane.sample;
      at = pane; view = wanted;
      const name = `${view.about.name}|${view.column}`, found = await LL.blocks(at.sample, [name, `top_ids:0|${view.site}`, `top_probs:0|${view.site}`]);
      values = found[name] ?? null; ids = found[`top_ids:0|${view.site}`] ?? null; shares = found[`top_probs:0|${view.site}`] ?? null;
      ends = LL.ends(view.about, values ?? []);
      zoom.value = width();
      if (fresh) { here = { token: -1, layer: -1 }; frame.scrollLeft = frame.scrollTop = 0; cell.textContent = "Point at a cell."; }
      ask();
    },
    // keeps the token that is pointed at in the text in view here
    follow(pane, token) {
      if (pane !== at || here.token === token) return;
      here = { token, layer: here.layer };
      const x = token * width();
      if (x < frame.scrollLeft || x > frame.scrollLeft + frame.clientWidth - LEFT - width()) frame.scrollLeft = x - frame.clientWidth / 2;
      ask();
    },
  };
};
