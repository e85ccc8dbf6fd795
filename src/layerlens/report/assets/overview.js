"use strict";
// The overview: what was measured, the recommendation, how runs compare, and the figures of means.
LL.list = (pairs) => LL.el("dl", {}, pairs.map(([name, text]) => [LL.el("dt", {}, name), LL.el("dd", { class: name === "again" || name === "next" ? "command" : "" }, text)]));

LL.overview = (place, found) => {
  LL.relativeFirst = new Set(found.runs.map((run) => run.n_layers)).size > 1;
  LL.severalRuns = found.runs.length > 1;
  place.append(LL.el("h2", {}, "Overview"));
  place.append(LL.el("div", { class: "columns" }, found.runs.map((run) => LL.el("article", { class: "card run" },
    LL.el("h3", {}, run.name),
    LL.el("p", { class: "lead" }, run.recommendation[0][0] === "recommended" ? `Recommended: ${run.recommendation[0][1]}.` : run.recommendation[0][1]),
    LL.list(run.recommendation.slice(run.recommendation[0][0] === "recommended" ? 1 : 0)),
    LL.el("details", { open: found.runs.length === 1 }, LL.el("summary", {}, "What was measured, and the command that repeats it"), LL.list(run.facts))))));
  place.append(LL.compared(found.comparison, found.runs.length > 1));
  if (found.runs.some((run) => run.n_layers > 1)) {
    place.append(LL.select("depth in figures", [["layer", "layers, from 1"], ["relative", "relative depth l / L"]],
      LL.state.get("axis", LL.relativeFirst ? "relative" : "layer"), (axis) => LL.state.set({ axis })));
  }
  place.append(LL.el("div", { class: "columns wide" }, found.figures.map((figure) => LL.figure(figure))));
};

LL.compared = (comparison, several) => {
  const box = LL.el("article", { class: "card" }, LL.el("h3", {}, several ? "How the runs compare" : "How the model settles"));
  if (comparison.missing) return (box.append(LL.el("p", { class: "missing" }, `Not shown: ${comparison.missing}.`)), box);
  box.append(...comparison.said.map((sentence) => LL.el("p", {}, sentence)));
  if (comparison.rows.length) box.append(LL.table(comparison.columns, comparison.rows, "measures of each run, with 95% intervals", "layerlens-measures"));
  return box;
};
