"use strict";
// The charts, in the colors of the page.

/** Returns the text of a script element that holds gzip in base64. */
async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function tellProblem(text) {
  const place = document.getElementById("problem");
  place.textContent = text;
  place.hidden = false;
}

/** Replaces the colors in a figure, which are names of CSS variables, by their values. */
function colored(value, style) {
  const color = (name) => style.getPropertyValue(name).trim();
  if (Array.isArray(value)) return typeof value.at(-1) === "object" ? value.map((part) => colored(part, style)) : value;
  if (!value || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => {
    if (key === "color") return [key, color(part)];
    if (key === "colorscale") return [key, part.map(([place, name]) => [place, color(name)])];
    return [key, colored(part, style)];
  }));
}

function layoutOf(figure, style) {
  const color = (name) => style.getPropertyValue(name).trim();
  const layout = colored(figure.layout, style);
  const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--text") };
  for (const name of ["xaxis", "yaxis"]) {
    const { title, ...axis } = layout[name];
    layout[name] = {
      gridcolor: color("--grid"), zeroline: false, linecolor: color("--border"), automargin: true,
      fixedrange: window.matchMedia("(pointer: coarse)").matches, // a finger scrolls the page
      title: { text: title, standoff: 8, font: { size: 13, color: color("--muted") } }, ...axis,
    };
  }
  return {
    ...layout, font,
    margin: { l: 56, r: 12, t: 8, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: figure.data.length > 1,
    legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", traceorder: "normal", font: { size: 12 } },
    hoverlabel: { bgcolor: color("--surface"), bordercolor: color("--border"), font: { ...font, size: 12 } },
  };
}

function draw(place, figures) {
  const figure = figures[place.dataset.figure];
  const style = getComputedStyle(document.documentElement);
  const config = { displaylogo: false, responsive: true, displayModeBar: false };
  Plotly.react(place, colored(figure.data, style), layoutOf(figure, style), config);
}

(async () => {
  if (!("DecompressionStream" in window)) {
    tellProblem("The charts and the review need a browser of 2023 or later.");
    return;
  }
  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll("[data-figure]")];
  const drawn = new Set();
  // A chart in a closed `details` has no size until it opens.
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !drawn.has(target)) {
        drawn.add(target);
        draw(target, figures);
      }
    }
  }, { rootMargin: "600px" });
  places.forEach((place) => watcher.observe(place));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn.forEach((place) => draw(place, figures));
  });
  document.documentElement.dataset.charts = "ready";
})();
