"use strict";
// From compressed arrays in base64 back to numbers, when they are first needed.
LL.inflate = (base64) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")));
};

// The numbers of a block, exact to its decimals; NaN for what is not known. Kept with the block once they are there.
LL.unpack = (block) => {
  block.promise ??= LL.inflate(block.z).arrayBuffer().then((buffer) => {
    const bytes = new Uint8Array(buffer), { n, w, lo, d } = block, scale = 10 ** d, unknown = 256 ** w - 1;
    const values = new Float64Array(n);
    for (let plane = w - 1; plane >= 0; plane--) for (let i = 0; i < n; i++) values[i] = values[i] * 256 + bytes[plane * n + i];
    for (let i = 0; i < n; i++) values[i] = values[i] === unknown ? NaN : (values[i] + lo) / scale;
    block.values = values;
    return values;
  });
  return block.promise;
};

// The charting library, started when the first chart is drawn: its text is one that the page's policy names by its hash.
LL.plotly = () => {
  LL.library ??= LL.inflate(document.getElementById("library").textContent.trim()).text().then((program) => {
    document.head.append(LL.el("script", {}, program));
    return Plotly;
  });
  return LL.library;
};
