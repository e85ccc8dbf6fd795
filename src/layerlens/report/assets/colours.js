"use strict";
// Colours that are told apart without red against green: maps for values, and lines by colour, dash and marker.
LL.maps = {
  sequential: ["#fcfdbf", "#fec488", "#fb8861", "#e75263", "#b63679", "#812581", "#51127c", "#241253"],
  diverging: ["#2166ac", "#5aa0cd", "#a6cfe3", "#eef0f2", "#f7c1a3", "#dd7059", "#b2182b"],
};
LL.maps.unit = ["#fde725", "#8fd744", "#35b779", "#21908d", "#31688e", "#443a83", "#440154"].reverse();
LL.lines = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9"];
LL.linesDark = ["#56b4e9", "#ff9d5c", "#2fc79a", "#e79cc4", "#f0c534", "#8fc8f0"];
LL.dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
LL.markers = ["circle", "square", "diamond", "triangle-up", "cross", "x"];

LL.line = (number) => {
  const place = ((number % 6) + 6) % 6;
  return { colour: (LL.isDark() ? LL.linesDark : LL.lines)[place], dash: LL.dashes[place], marker: LL.markers[place] };
};

const channels = (hex) => [1, 3, 5].map((place) => Number.parseInt(hex.slice(place, place + 2), 16));

// 256 colours of a map as [r, g, b], made once.
const tables = {};
const table = (name) => {
  const key = `${name}${LL.isDark()}`;
  tables[key] ??= Array.from({ length: 256 }, (_, i) => {
    const stops = LL.stops(name).map(channels), place = (i / 255) * (stops.length - 1), below = Math.min(Math.floor(place), stops.length - 2);
    return stops[below].map((channel, at) => Math.round(channel + (place - below) * (stops[below + 1][at] - channel)));
  });
  return tables[key];
};
const luminance = ([r, g, b]) => [r, g, b].reduce((sum, channel, at) => {
  const part = channel / 255;
  return sum + [0.2126, 0.7152, 0.0722][at] * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
}, 0);

// The stops of a map: low values are near the ground of the page, light or dark.
LL.stops = (name) => (name === "sequential" && LL.isDark() ? LL.maps[name].toReversed() : LL.maps[name]);

// The ground of a value between low and high, and black or white, whichever is read better on it.
const painted = {};
LL.paint = (map, value, low, high, dark = LL.isDark()) => {
  if (!Number.isFinite(value)) return { ground: "transparent", ink: "inherit" };
  const place = Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low || 1))));
  const key = `${map}${dark}`;
  painted[key] ??= [];
  painted[key][place] ??= (() => {
    const colour = table(map)[place];
    return { ground: `rgb(${colour.join(",")})`, ink: luminance(colour) > 0.179 ? "#000" : "#fff" };
  })();
  return painted[key][place];
};
LL.scale = (map) => LL.stops(map).map((colour, place, all) => [place / (all.length - 1), colour]);
LL.gradient = (map) => `linear-gradient(to right, ${LL.stops(map).join(", ")})`;
