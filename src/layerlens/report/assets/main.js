"use strict";
// Puts the page together: its parts as tabs, light and dark, printing, and news from `layerlens watch`.
(() => {
  const { data, el, state } = LL, main = document.getElementById("main"), tabs = document.getElementById("tabs");
  const parts = [
    ["overview", "Overview", data.overview, (place) => (LL.overview(place, data.overview), { draw: () => LL.drawAll(place) })],
    ["text", "Text", data.texts.length, (place) => LL.texts(place)],
    ["training", "Training", data.training, (place) => LL.training(place, data.training)],
  ].filter(([, , there]) => there);
  const made = {};
  const chosen = () => (parts.some(([name]) => name === state.get("tab")) ? state.get("tab") : parts[0][0]);

  const show = () => {
    const name = chosen();
    for (const [other, , , build] of parts) {
      const tab = document.getElementById(`tab-${other}`), panel = document.getElementById(other);
      tab.setAttribute("aria-selected", String(other === name));
      tab.tabIndex = other === name ? 0 : -1;
      panel.hidden = other !== name;
      if (other === name && !made[other]) { made[other] = build(panel); made[other].draw(); }
    }
  };
  parts.forEach(([name, title], at) => {
    const go = (to) => { state.set({ tab: parts[(to + parts.length) % parts.length][0] }); document.getElementById(`tab-${chosen()}`).focus(); };
    tabs.append(LL.button(title, () => state.set({ tab: name }), { role: "tab", id: `tab-${name}`, "aria-controls": name, onkeydown: (event) => {
      if (event.key === "ArrowRight") go(at + 1);
      if (event.key === "ArrowLeft") go(at - 1);
    } }));
    main.append(el("section", { id: name, role: "tabpanel", "aria-labelledby": `tab-${name}`, tabindex: "-1", hidden: true }));
  });

  const themes = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" }, theme = LL.button("", () => {
    const names = Object.keys(themes);
    state.set({ theme: names[(names.indexOf(state.get("theme", "auto")) + 1) % 3] });
  });
  const dress = () => {
    const name = themes[state.get("theme")] ? state.get("theme") : "auto";
    document.documentElement.dataset.theme = name;
    theme.textContent = themes[name];
    theme.setAttribute("aria-label", `Colours: ${name}; change`);
  };
  // paper is white, and narrower than a screen
  const paper = (there) => {
    if (there) document.documentElement.dataset.theme = "light";
    else dress();
    LL.printed = there ? 680 : null;
    for (const { box, dress: change } of LL.charts) if (box.dataset.drawn === "yes" && box.offsetParent) change();
    if (!there) dispatchEvent(new Event("resize"));
  };
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
  document.getElementById("tools").append(theme, LL.button("Print", () => print()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.set({}) ?? LL.state.listeners.forEach((listen) => listen(new Set(["theme"]))));

  state.listen((keys) => {
    if (keys.has("theme")) dress();
    if (keys.has("tab")) show();
    for (const name of ["text", "training"]) if (made[name] && chosen() === name) made[name].draw(keys.has("tab") ? null : keys);
  });
  document.getElementById("made").textContent = `Made ${data.made} by layerlens ${data.layerlens}; charts by ${data.library} (MIT licence). Layers count from 1.`;
  dress();
  show();

  if (data.live) {
    const ask = async () => {
      try {
        const version = await (await fetch("version", { cache: "no-store" })).text();
        if (ask.seen !== undefined && version !== ask.seen) {
          sessionStorage.setItem("scrolled", scrollY);
          location.reload();
        }
        ask.seen ??= version;
        document.body.classList.remove("lost");
      } catch { document.body.classList.add("lost"); }
    };
    document.getElementById("made").append(el("strong", {}, " Live: the page follows what is running."));
    setTimeout(() => scrollTo(0, Number(sessionStorage.getItem("scrolled"))), 800);
    ask();
    setInterval(ask, 2000);
  }
})();
