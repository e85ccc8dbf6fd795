"use strict";
// Tables that are sorted by their headings, copied and saved.
// `columns` are headings; cells are texts, numbers, null, or [value, low, high], which is sorted by its value, or
// { text, values: [value, low, high] }, which is read as its text.
LL.table = (columns, rows, caption, file) => {
  const head = LL.el("tr"), body = LL.el("tbody");
  let order = [...rows.keys()], sorted = null;
  const words = rows.map((row) => row.map((cell) => cell?.text));  // of cells that bring words of their own beside their values
  rows = rows.map((row, place) => row.map((cell, at) => (words[place][at] === undefined ? cell : cell.values)));
  const value = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const written = (cell) => (Array.isArray(cell) ? LL.number(cell[0]) + LL.interval(cell[1], cell[2]) : typeof cell === "number" ? LL.number(cell) : cell ?? "–");
  const fill = () => body.replaceChildren(...order.map((place) => LL.el("tr", {}, rows[place].map((cell, at) => (
    LL.el(at ? "td" : "th", { class: typeof value(cell) === "number" ? "number" : "", ...(at ? {} : { scope: "row" }) }, words[place][at] ?? written(cell)))))));
  const sort = (column) => {
    const falls = sorted?.column === column && !sorted.falls;
    sorted = { column, falls };
    order.sort((one, other) => {
      const [a, b] = [value(rows[one][column]), value(rows[other][column])];
      if (a === null || b === null) return (a === null) - (b === null);
      const before = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      return (falls ? -before : before) || one - other;
    });
    [...head.children].forEach((cell, at) => cell.setAttribute("aria-sort", at !== column ? "none" : falls ? "descending" : "ascending"));
    fill();
  };
  columns.forEach((name, at) => head.append(LL.el("th", { scope: "col", "aria-sort": "none" }, LL.button(name, () => sort(at)))));
  fill();
  const wide = columns.flatMap((name, at) => (rows.some((row) => Array.isArray(row[at])) ? [name, `${name} low`, `${name} high`] : [name]));
  const flat = () => order.map((place) => rows[place].flatMap((cell, at) => (
    wide.includes(`${columns[at]} low`) ? (Array.isArray(cell) ? cell : [cell, null, null]) : [cell])));
  const csv = () => [wide, ...flat()].map((row) => row.map(LL.quoted).join(",")).join("\r\n") + "\r\n";
  return LL.el("div", { class: "table" },
    LL.el("div", { class: "buttons" },
      LL.button("Copy", () => LL.copy([wide, ...flat()].map((row) => row.map((cell) => cell ?? "").join("\t")).join("\n"))),
      LL.button("Save as CSV", () => LL.save(new Blob([csv()], { type: "text/csv" }), `${file}.csv`))),
    LL.el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${caption}` },
      LL.el("table", {}, LL.el("caption", { class: "unseen" }, caption), LL.el("thead", {}, head), body)));
};

// A cell of CSV. A text that a spreadsheet would run as a formula gets an apostrophe in front.
LL.quoted = (cell) => {
  if (cell === null || cell === undefined) return "";
  const text = typeof cell === "string" && /^[=+\-@\t\r]/.test(cell) ? `'${cell}` : String(cell);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

LL.save = (blob, name) => {
  const link = LL.el("a", { href: URL.createObjectURL(blob), download: name.replace(/[^\w.-]+/g, "-") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};

LL.copy = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from disk may not be let
    const area = LL.el("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  LL.say("Copied.");
};
