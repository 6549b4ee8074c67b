// Draws the charts in the colours of the page, and again when these change.
(() => {
  "use strict";
  const { charts, common } = JSON.parse(document.getElementById("charts").textContent);
  const places = [...document.querySelectorAll("[data-chart]")];
  const root = document.documentElement;
  const config = { displayModeBar: false, responsive: true, showTips: false, doubleClick: false };
  const printed = 660; // px, about what a sheet of paper takes

  // "var(--name)" anywhere in a value becomes what the style sheet has for it now
  const coloured = (value, style) => {
    if (typeof value === "string") {
      const name = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, coloured(v, style)]));
  };

  const draw = (place, width) => {
    const style = getComputedStyle(root);
    const chart = charts[place.dataset.chart];
    const layout = { ...chart.layout, template: { layout: common }, autosize: !width };
    if (width) layout.width = width;
    return Plotly.react(place, coloured(chart.data, style), coloured(layout, style), config);
  };

  const all = (width) => places.forEach((place) => draw(place, width));

  // one chart a frame: the page can be read and scrolled meanwhile
  const queue = [...places];
  const next = () => {
    if (queue.length === 0) {
      root.dataset.drawn = "";
      return;
    }
    draw(queue.shift());
    setTimeout(next, 0);
  };
  next();

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => all());
  addEventListener("beforeprint", () => {
    root.dataset.print = "";
    all(printed);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.print;
    all();
  });
})();
