"use strict";
// Training: playback over the monitor's snapshots, and what monitor and trainer say step by step.
LL.training = (place, found) => {
  const steps = [...new Set(found.runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
  const by = found.by_layer.filter(([key]) => found.runs.some((run) => run.by_layer[key]));
  place.append(LL.el("h2", {}, "Training"), LL.el("div", { class: "columns" }, found.runs.map((run) => LL.el("article", { class: "card run" }, LL.el("h3", {}, run.name), LL.list(run.facts)))));
  const series = LL.el("div", { class: "columns wide" }, found.by_step.filter(([key]) => found.runs.some((run) => run.by_step[key])).map(([key, title, unit]) => LL.figure({
    id: `step-${key.replace("/", "-")}`, title, kind: "lines", x: "optimizer step", y: "", unit, height: 240, note: key,
    phases: found.runs.length === 1 ? found.runs[0].phases.map(([first, last]) => ({ run: "", name: "exploration", first: first - 0.5, last: last + 0.5 })) : [],
    series: found.runs.map((run, group) => [run, group]).filter(([run]) => run.by_step[key]).map(([run, group]) => ({ name: run.name, x: run.by_step[key].steps, ...run.by_step[key], group, pick: {} })),
  })));
  if (!steps.length) {
    place.append(LL.el("p", { class: "missing" }, "No snapshots: train with --monitor_every N for the playback over layers."), series);
    return { draw: () => LL.drawAll(place) };
  }

  // the snapshot of a run at a step is the last one up to it
  const at = (run, step) => run.steps.reduce((best, one, number) => (one <= step ? number : best), 0);
  const step = () => { const wanted = LL.state.number("step", steps.at(-1)); return steps.reduce((best, one) => (one <= wanted ? one : best), steps[0]); };
  const measure = () => by.find(([key]) => key === LL.state.get("measure")) ?? by[0];
  const output = LL.el("output"), slider = LL.el("input", { type: "range", id: "step", min: 0, max: steps.length - 1, "aria-label": "Snapshot at optimizer step", oninput: () => LL.state.set({ step: steps[slider.value] }) });
  const play = LL.button("▶ Play", () => (play.timer ? stop() : start()), { class: "play" });
  const stop = () => { clearInterval(play.timer); play.timer = null; play.textContent = "▶ Play"; };
  const start = () => {
    if (step() === steps.at(-1)) LL.state.set({ step: steps[0] });
    play.textContent = "❚❚ Pause";
    play.timer = setInterval(() => { const next = steps[steps.indexOf(step()) + 1]; if (next === undefined) stop(); else LL.state.set({ step: next }); }, Math.max(250, 6000 / steps.length));
  };
  const pick = LL.el("span"), live = LL.el("div", { class: "columns wide" });
  place.append(LL.el("div", { class: "controls card" }, play, LL.el("label", { class: "pick range" }, LL.el("span", {}, "step"), slider, output), pick), live, series);

  const profile = (key, title, unit) => ({
    id: "profile", title: `${title} at step ${step()}`, kind: "lines", x: "layer", y: "", unit, note: "thin: the first snapshot", phases: [],
    marks: found.runs.flatMap((run) => run.phases.filter(([first, last]) => first <= step() && step() <= last).map(([, , layer]) => ({ layer, L: null, text: `trained: ${layer}` }))),
    series: found.runs.map((run, group) => [run, group]).filter(([run]) => run.by_layer[key]).flatMap(([run, group]) => {
      const of = run.by_layer[key], now = at(run, step()), row = (part, number) => of[part]?.[number] ?? of.layers.map(() => null);
      return [{ name: run.name, x: of.layers, mean: row("mean", now), low: row("low", now), high: row("high", now), group, pick: {} },
        ...(now ? [{ name: `${run.name}, step ${run.steps[0]}`, x: of.layers, mean: row("mean", 0), group, thin: true, pick: {} }] : [])];
    }),
  });
  const history = (key, title, unit) => ({
    id: "history", title: `${title} over training`, kind: "heat", x: "optimizer step", y: "layer", unit, picks: ["run"], note: "the framed column is the snapshot of the slider",
    scale: key.startsWith("entropy_change") ? "diverging" : key.startsWith("similarity") ? "unit" : "sequential", height: 320,
    panels: found.runs.filter((run) => run.by_layer[key]).map((run) => {
      const of = run.by_layer[key], turned = (part) => of[part] && of.layers.map((_, layer) => of[part].map((row) => row[layer]));
      return { x: run.steps.map(String), y: of.layers.map(String), mean: turned("mean"), low: turned("low"), high: turned("high"), pick: { run: run.name } };
    }),
    get shapes() { const shown = found.runs.find((run) => run.name === LL.state.get("history.run")) ?? found.runs.find((run) => run.by_layer[key]), now = at(shown, step()); return [{ type: "rect", x0: now - 0.5, x1: now + 0.5, yref: "paper", y0: 0, y1: 1, line: { color: LL.theme("ink"), width: 2 } }]; },
  });
  const figures = [profile, history].map((make) => LL.figure(make(...measure())));
  live.append(...figures);
  const draw = async (keys = null) => {
    slider.value = steps.indexOf(step());
    output.textContent = `${step()} of ${steps.at(-1)}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    if (keys === null || ["step", "measure", "theme"].some((key) => keys.has(key))) {
      const chosen = measure(), focus = document.activeElement?.tagName === "SELECT" && pick.contains(document.activeElement);
      pick.replaceChildren(LL.select("by layer", by.map(([key, title]) => [key, title]), chosen[0], (key) => LL.state.set({ measure: key })));
      if (focus) pick.querySelector("select").focus();
      await Promise.all([profile, history].map((make, number) => figures[number].figure.update(make(...chosen))));
      place.dataset.step = step();
    }
    if (keys === null) await LL.drawAll(series);
  };
  return { draw };
};
