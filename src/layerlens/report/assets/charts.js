"use strict";
// A figure: heading, what the reader may choose, the chart, and the table behind it. Its values come from Python as they are.
LL.charts = new Set();

// What Plotly would read as markup becomes text.
LL.literal = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

LL.figure = (spec, below = null) => {
  const key = (pick) => `${spec.id}.${pick}`;
  const heading = LL.el("h3", { id: `figure-${spec.id}` }, spec.title), caption = LL.el("figcaption");
  const box = LL.el("figure", { class: spec.wide ? "card whole" : "card", "aria-labelledby": heading.id, id: `box-${spec.id}` }, heading);
  if (spec.kind === "missing") {
    box.append(LL.el("p", { class: "missing" }, `Not shown: ${spec.missing}.`));
    return box;
  }
  const picks = LL.el("div", { class: "picks" }), chart = LL.el("div", { class: "chart", role: "img", "aria-label": `Chart: ${spec.title}; its numbers are in the table below it` });
  const details = LL.el("details", {}, LL.el("summary", {}, "Table"));

  // The choices of the reader, each among what the choices before it leave.
  const chosen = () => {
    const found = {};
    let left = spec.series ?? spec.panels;
    for (const pick of spec.picks ?? []) {
      const options = [...new Set(left.map((item) => item.pick[pick]))];
      const wanted = LL.state.get(key(pick), spec.start?.[pick] ?? options[0]);
      found[pick] = { value: options.includes(wanted) ? wanted : options[0], options };
      left = left.filter((item) => item.pick[pick] === found[pick].value);
    }
    return { found, left };
  };
  const relative = () => spec.x === "layer" && !spec.fixed && LL.state.get("axis", LL.relativeFirst ? "relative" : "layer") === "relative";

  const draw = async () => {
    heading.textContent = spec.title;
    caption.textContent = spec.note ?? "";
    const { found, left } = chosen();
    picks.replaceChildren(...Object.entries(found).filter(([, { options }]) => options.length > 1).map(([pick, { value, options }]) => (
      LL.select(pick, options.map((option) => [option, option]), value, (wanted) => LL.state.set({ [key(pick)]: wanted })))));
    if (details.open) fill();
    const plotly = await LL.plotly();
    const { traces, layout } = spec.kind === "heat" ? LL.cells(spec, left[0]) : LL.curves(spec, left, relative(), found);
    await plotly.react(chart, traces, { ...LL.frame(), ...layout }, { responsive: true, displayModeBar: false });
    box.dataset.drawn = "yes";
  };
  const fill = () => {
    const { found, left } = chosen();
    const { columns, rows } = spec.kind === "heat" ? LL.cellRows(spec, left[0]) : LL.curveRows(spec, left, found);
    details.replaceChildren(details.firstElementChild, LL.table(columns, rows, spec.title, `layerlens-${spec.id}`));
  };
  details.addEventListener("toggle", () => details.open && fill());
  const saved = async (format) => (await LL.plotly()).downloadImage(chart, { format, filename: `layerlens-${spec.id}`, width: 900, height: chart.clientHeight, scale: format === "png" ? 2 : 1 });
  box.append(picks, chart, ...(below ? [below] : []), caption,
    LL.el("div", { class: "buttons" }, LL.button("PNG", () => saved("png"), { "aria-label": `Save as PNG: ${spec.title}` }), LL.button("SVG", () => saved("svg"), { "aria-label": `Save as SVG: ${spec.title}` })), details);
  // the same figure of other values
  const update = (next) => { spec = next; return draw(); };
  const figure = { box, chart, draw, update, touches: (keys) => [...keys].some((name) => name === "axis" || name === "theme" || name.startsWith(`${spec.id}.`)) };
  figure.dress = () => globalThis.Plotly?.relayout(chart, { "font.color": LL.theme("ink"), paper_bgcolor: LL.theme("card"), plot_bgcolor: LL.theme("card"), "xaxis.gridcolor": LL.theme("line"), "yaxis.gridcolor": LL.theme("line"), width: LL.printed });
  LL.charts.add(figure);
  box.figure = figure;
  return box;
};

// Draws the figures inside an element one after another, so that the page answers in between.
LL.drawAll = async (place) => {
  for (const box of place.querySelectorAll("figure")) {
    if (!box.figure || box.dataset.drawn === "yes") continue;
    await box.figure.draw();
    await new Promise((done) => { setTimeout(done); });
  }
};
LL.state.listen((keys) => {
  for (const figure of LL.charts) if (figure.box.dataset.drawn === "yes" && figure.touches(keys)) figure.draw();
});

LL.frame = () => ({
  font: { family: "system-ui, sans-serif", size: 12, color: LL.theme("ink") },
  paper_bgcolor: LL.theme("card"), plot_bgcolor: LL.theme("card"),
  margin: { l: 52, r: 12, t: 12, b: 42 }, hovermode: "closest", dragmode: false,
  hoverlabel: { bgcolor: LL.theme("card"), bordercolor: LL.theme("ink"), font: { color: LL.theme("ink") }, align: "left" },
  legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, showlegend: true,
});
// `title` is a text, or a list of its lines.
LL.axis = (title, more = {}) => ({ title: { text: [title].flat().map(LL.literal).join("<br>"), standoff: 8 }, gridcolor: LL.theme("line"), zerolinecolor: LL.theme("line"), automargin: true, ...more });

// x of a series: its layers, or l / L.
const places = (series, relative) => (relative && series.L ? series.x.map((layer) => layer / series.L) : series.x);
const label = (spec, series, at) => (series.labels ? series.labels[at]
  : spec.x === "layer" ? `layer ${series.x[at]}${series.L ? ` of ${series.L} (l / L = ${(series.x[at] / series.L).toFixed(2)})` : ""}` : `${spec.x} ${series.x[at]}`);

LL.curves = (spec, left, relative, found) => {
  const traces = [];
  for (const series of left) {
    const style = series.group < 0 ? { colour: LL.theme("ink"), dash: "solid", marker: "circle" } : LL.line(series.group);
    const x = places(series, relative), name = LL.literal(series.name);
    const hover = series.mean.map((value, at) => `<b>${name}</b><br>${LL.literal(label(spec, series, at))}<br>${series.segments ? `${LL.number(series.start[at])} → ` : ""}${LL.withUnit(value, spec.unit)}${LL.interval(series.low?.[at] ?? null, series.high?.[at] ?? null)}`);
    const shared = { text: hover, hovertemplate: "%{text}<extra></extra>" };
    if (series.segments) {
      const line = { x: [], y: [] };
      x.forEach((place, at) => { line.x.push(place, place, null); line.y.push(series.start[at], series.mean[at], null); });
      traces.push({ ...line, mode: "lines", line: { color: style.colour, width: 2 }, hoverinfo: "skip", showlegend: false, legendgroup: name });
      const symbol = series.mean.map((value, at) => (value >= series.start[at] ? "triangle-up" : "triangle-down"));
      traces.push({ x, y: series.mean, mode: "markers", name, legendgroup: name, marker: { color: style.colour, symbol, size: 8, ...(series.group ? {} : { line: { color: style.colour, width: 1.5 } }) }, ...shared });
      continue;
    }
    if (series.low?.some((value) => value !== null)) {
      traces.push({ x, y: series.high, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: name });
      traces.push({ x, y: series.low, mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: `${style.colour.slice(0, 7)}33`, hoverinfo: "skip", showlegend: false, legendgroup: name });
    }
    const marked = series.x.length <= 80 && !series.thin ? "lines+markers" : "lines";
    traces.push({ x, y: series.mean, mode: marked, name, legendgroup: name, line: { color: style.colour, dash: style.dash, width: series.thin ? 0.8 : 2 }, marker: { symbol: style.marker, size: 6 }, ...shared });
  }
  return { traces, layout: {
    height: spec.height ?? 320, showlegend: left.length > 1 || LL.severalRuns,
    xaxis: LL.axis(relative ? "relative depth l / L" : spec.x, { ...(relative ? {} : LL.whole(left)), ...(spec.marks ? { range: LL.span(left, relative) } : {}) }),
    yaxis: LL.axis(spec.named ? named(found[spec.named].value, spec.y) : `${spec.y}${unit(spec)}`, spec.zero ? { rangemode: "tozero" } : {}), ...LL.shades(spec, left, relative) } };
};

// Ticks at whole numbers: over a short span, which Plotly would divide further, at each.
LL.whole = (left) => {
  const ends = left.flatMap(({ x }) => [x[0], x.at(-1)]);
  return { tickformat: "d", ...(Math.max(...ends) - Math.min(...ends) < 10 ? { dtick: 1 } : {}) };
};

// From the first place of all series to the last, with room for markers: the automatic range would also hold the texts of marks.
LL.span = (left, relative) => {
  const all = left.flatMap((series) => places(series, relative));
  const [low, high] = [Math.min(...all), Math.max(...all)], room = high > low ? 0.04 * (high - low) : 0.5;
  return [low - room, high + room];
};

// Phases as tinted grounds, named, of the run if only one is shown; chosen layers and steps as lines.
LL.shades = (spec, left, relative) => {
  const shapes = [], annotations = [], one = new Set((spec.phases ?? []).map((phase) => phase.run)).size === 1;
  const place = (layer, L) => (relative && L ? layer / L : layer);
  if (one) {
    spec.phases.forEach((phase) => {
      const [x0, x1] = [place(phase.first - 0.5, phase.L), place(phase.last + 0.5, phase.L)];
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, layer: "below", line: { width: 0 }, fillcolor: LL.theme(phase.name) });
      annotations.push({ x: (x0 + x1) / 2, y: 1, yref: "paper", yanchor: "top", showarrow: false, text: phase.last - phase.first < 2 ? "" : phase.name, font: { size: 11, color: LL.theme("soft") } });
    });
  }
  const drawn = new Set(left.map((series) => series.name)), [low, high] = LL.span(left, relative);
  (spec.marks ?? []).filter((mark) => !mark.run || drawn.has(mark.run)).forEach((mark, at) => {
    const x = place(mark.layer, mark.L);
    shapes.push({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { dash: "dot", width: 1.5, color: LL.theme("ink") } });
    if (mark.text) annotations.push({ x, y: 0.02 + 0.08 * at, yref: "paper", yanchor: "bottom", xanchor: x < (low + high) / 2 ? "left" : "right", showarrow: false, text: LL.literal(one ? mark.text : `${mark.run}: ${mark.layer}`), font: { size: 11 } });
  });
  return { shapes, annotations };
};

LL.cells = (spec, panel) => {
  const colours = spec.scale === "diverging" ? "diverging" : spec.scale === "unit" ? "unit" : "sequential";
  const text = panel.mean.map((row, y) => row.map((value, x) => `${LL.literal(`${spec.y} ${panel.y[y]}, ${spec.x} ${panel.x[x]}`)}<br><b>${LL.withUnit(value, spec.unit)}</b>${LL.interval(panel.low?.[y][x] ?? null, panel.high?.[y][x] ?? null)}`));
  const reach = spec.scale === "diverging" ? Math.max(...panel.mean.flat().filter(Number.isFinite).map(Math.abs)) : null;
  const ends = reach !== null ? { zmin: -reach, zmax: reach } : spec.scale === "unit" ? { zmax: 1 } : { zmin: Math.min(0, ...panel.mean.flat().filter(Number.isFinite)) };
  return {
    traces: [{ type: "heatmap", x: panel.x, y: panel.y, z: panel.mean, text, hovertemplate: "%{text}<extra></extra>", colorscale: LL.scale(colours), ...ends, xgap: 1, ygap: 1, colorbar: { thickness: 12, title: { text: spec.unit, side: "right" }, outlinewidth: 0 } }],
    layout: { height: spec.height ?? (spec.square ? 400 : 300), showlegend: false, xaxis: LL.axis(spec.x, { type: "category", showgrid: false }), yaxis: LL.axis(spec.square ? spec.y : "", { type: "category", showgrid: false }), shapes: spec.shapes ?? [] },
  };
};

// A metric as the lines of an axis, its unit in the second: "entropy of the internal policy", "mean [nats]".
const named = (metric, y) => { const at = metric.indexOf(" ["); return at < 0 ? [metric, y] : [metric.slice(0, at), y + metric.slice(at)]; };
const unit = (spec) => (spec.unit ? ` [${spec.unit}]` : "");
LL.curveRows = (spec, left, found) => {
  const steps = left.some((series) => series.segments), depth = left.some((series) => series.L);
  return {
    columns: ["curve", spec.x === "layer" ? "layer" : spec.x, ...(depth ? ["l / L"] : []), ...(steps ? ["from"] : []), spec.named ? found[spec.named].value : `mean${unit(spec)}`],
    rows: left.flatMap((series) => series.mean.map((value, at) => [
      series.name, series.labels ? series.labels[at] : series.x[at], ...(depth ? [series.L ? Number((series.x[at] / series.L).toFixed(4)) : null] : []),
      ...(steps ? [series.start?.[at] ?? null] : []), [value, series.low?.[at] ?? null, series.high?.[at] ?? null]])),
  };
};
LL.cellRows = (spec, panel) => ({
  columns: [spec.y, spec.x === spec.y ? `${spec.x} (other)` : spec.x, `mean${unit(spec)}`],
  rows: panel.mean.flatMap((row, y) => row.map((value, x) => [panel.y[y], Number(panel.x[x]), [value, panel.low?.[y][x] ?? null, panel.high?.[y][x] ?? null]])),
});
