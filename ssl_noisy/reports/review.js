"use strict";
// The review: a queue of examples, and a desk at which one of them is judged.

const TILES = 60; // on a page
const MARKS = { keep: "kept", unlabel: "unlabeled", remove: "removed" };
const SORTS = {
  "suspicion, highest first": (c) => (row) => row,
  "mean loss, highest first": (c) => (row) => -(c.mean_loss[row] ?? -Infinity),
  "margin, lowest first": (c) => (row) => c.probability_margin[row] ?? Infinity,
  "agreement, lowest first": (c) => (row) => c.agreement[row] ?? Infinity,
  "area under the margin, lowest first": (c) => (row) => c.aum[row] ?? Infinity,
};

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function storage(name) {
  try {
    return window[name];
  } catch {
    return null; // a browser may forbid it to files
  }
}

const percent = (share) => `${Math.round(100 * share)} %`;
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

class Review {
  constructor(review, sheet) {
    Object.assign(this, { review, sheet, columns: review.columns });
    this.at = (id) => document.getElementById(id);
    this.decisions = new Decisions(review, storage("localStorage"), storage("sessionStorage"));
    this.losses = this.columns.mean_loss.filter((loss) => loss !== null).sort((a, b) => a - b);
    this.rows = [];
    this.active = 0; // place in `rows`
    this.fillFilters();
    this.listen();
    this.select();
  }

  className(label) {
    return this.review.classes[label] ?? "";
  }

  /** The class that the network predicts, or null if it is the given one or unknown. */
  suggestion(row) {
    const label = this.columns.predicted[row];
    return label >= 0 && label !== this.columns.given[row] && label < this.review.classes.length ? label : null;
  }

  fillFilters() {
    const counts = new Map();
    this.columns.given.forEach((given, row) => {
      const label = this.suggestion(row);
      if (label !== null) counts.set(`${given},${label}`, (counts.get(`${given},${label}`) ?? 0) + 1);
    });
    for (const [pair, count] of [...counts].sort((a, b) => b[1] - a[1])) {
      const [given, label] = pair.split(",");
      const text = `${this.className(given)} → ${this.className(label)} (${count})`;
      this.at("pair").append(element("option", { value: pair, textContent: text }));
    }
    for (const name of Object.keys(SORTS)) this.at("sort").append(element("option", { value: name, textContent: name }));
    for (const name of this.review.classes) this.at("classes").append(element("option", { value: name }));
    if (!this.columns.issue.includes(1)) this.at("show").value = "all";
  }

  listen() {
    this.at("filters").addEventListener("change", () => this.select());
    this.at("filters").addEventListener("submit", (event) => event.preventDefault());
    this.at("undo").addEventListener("click", () => this.undo());
    this.at("export").addEventListener("click", () => this.export());
    this.at("previous").addEventListener("click", () => this.turn(-1));
    this.at("next").addEventListener("click", () => this.turn(1));
    this.at("tiles").addEventListener("click", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) this.activate(Number(tile.dataset.place), true);
    });
    for (const button of document.querySelectorAll("[data-act]")) {
      button.addEventListener("click", () => this.act(button.dataset.act));
    }
    this.at("choose").addEventListener("submit", (event) => {
      event.preventDefault();
      this.chooseClass();
    });
    this.at("class").addEventListener("input", () => this.at("class").setCustomValidity(""));
    this.at("review").addEventListener("keydown", (event) => this.press(event));
    window.addEventListener("storage", (event) => {
      if (this.decisions.follow(event)) this.refreshAll();
    });
    window.addEventListener("pageshow", (event) => {
      if (event.persisted) window.location.reload(); // it came back, and has missed the other tabs
    });
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) {
      if (event.key === "Escape") this.focusTile();
      return;
    }
    const acts = { k: "keep", t: "take", u: "unlabel", r: "remove" };
    const key = event.key.toLowerCase();
    if (acts[key]) this.act(acts[key]);
    else if (key === "z") this.undo();
    else if (key === "c") this.at("class").focus();
    else if (event.target.closest(".tiles") && this.move(event.key)) { /* moved */ }
    else return;
    event.preventDefault();
  }

  move(key) {
    const tiles = this.at("tiles").children;
    const top = tiles[0]?.offsetTop;
    const columns = [...tiles].filter((tile) => tile.offsetTop === top).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -TILES, PageDown: TILES };
    if (key === "Home") this.activate(0, true);
    else if (key === "End") this.activate(this.rows.length - 1, true);
    else if (key in steps) this.activate(this.active + steps[key], true);
    else return false;
    return true;
  }

  turn(direction) {
    const page = Math.floor(this.active / TILES) + direction;
    this.activate(page * TILES, false);
    this.at("tiles").scrollIntoView({ block: "nearest" });
  }

  /** Filters and sorts. */
  select() {
    const show = this.at("show").value, pair = this.at("pair").value;
    const isShown = {
      issues: (row) => this.columns.issue[row], all: () => true,
      open: (row) => !this.decisions.of(row), decided: (row) => this.decisions.of(row),
    }[show];
    this.rows = [];
    this.columns.given.forEach((given, row) => {
      if (isShown(row) && (!pair || pair === `${given},${this.suggestion(row)}`)) this.rows.push(row);
    });
    const value = SORTS[this.at("sort").value](this.columns);
    this.rows.sort((a, b) => value(a) - value(b) || a - b);
    this.active = 0;
    this.page = -1;
    this.at("count").textContent = `${plural(this.rows.length, "label")} of ${this.columns.given.length.toLocaleString("en")}`;
    this.activate(0, false);
    this.showProgress();
  }

  activate(place, focus) {
    this.active = Math.max(0, Math.min(place, this.rows.length - 1));
    const page = Math.floor(this.active / TILES);
    if (page !== this.page) this.showTiles(page);
    for (const tile of this.at("tiles").children) {
      const isActive = Number(tile.dataset.place) === this.active;
      tile.setAttribute("aria-selected", isActive);
      tile.tabIndex = isActive ? 0 : -1;
    }
    if (focus) this.focusTile();
    this.showDesk();
  }

  focusTile() {
    this.at("tiles").querySelector("[aria-selected=true]")?.focus({ preventScroll: window.innerWidth < 832 });
  }

  showTiles(page) {
    this.page = page;
    const start = page * TILES, end = Math.min(start + TILES, this.rows.length);
    const tiles = [];
    for (let place = start; place < end; place += 1) {
      const row = this.rows[place];
      const tile = element("div", { className: "tile" }, this.picture(row, false));
      tile.dataset.place = place;
      tile.setAttribute("role", "option");
      tile.append(element("span", { className: "pair", textContent: this.pairText(row) }));
      tile.append(element("span", { className: "mark", textContent: this.markText(row) }));
      tiles.push(tile);
    }
    this.at("tiles").replaceChildren(...tiles);
    this.at("previous").disabled = start === 0;
    this.at("next").disabled = end >= this.rows.length;
    const pages = Math.max(1, Math.ceil(this.rows.length / TILES));
    this.at("page").textContent = `Page ${page + 1} of ${pages}`;
  }

  pairText(row) {
    const label = this.suggestion(row), given = this.className(this.columns.given[row]);
    return label === null ? given : `${given} → ${this.className(label)}`;
  }

  markText(row) {
    const decision = this.decisions.of(row);
    if (!decision) return "";
    return MARKS[decision.act] ?? this.className(decision.label);
  }

  /** A canvas with the thumbnail, the picture itself, or a text in its place. */
  picture(row, isLarge) {
    const url = this.url(row), tiling = this.sheet && this.review.thumbnails;
    const hasThumbnail = tiling && row < tiling.count;
    if (url && (isLarge || !hasThumbnail)) {
      const image = element("img", { src: url, alt: "", loading: "lazy" });
      image.addEventListener("error", () => image.replaceWith(this.stored(row, hasThumbnail)));
      return image;
    }
    return this.stored(row, hasThumbnail);
  }

  stored(row, hasThumbnail) {
    if (!hasThumbnail) return element("span", { className: "blank", textContent: `${this.review.key} ${this.columns.example[row]}` });
    const { columns, width, height } = this.review.thumbnails;
    const canvas = element("canvas", { width, height, className: width < 48 ? "pixels" : "" });
    const [x, y] = [row % columns, Math.floor(row / columns)];
    canvas.setAttribute("aria-hidden", "true");
    canvas.getContext("2d").drawImage(this.sheet, x * width, y * height, width, height, 0, 0, width, height);
    return canvas;
  }

  url(row) {
    const { pictures, key } = this.review, name = this.columns.example[row];
    if (pictures === null || key !== "file") return null;
    const path = name.split("/").map(encodeURIComponent).join("/");
    return name.startsWith("/") ? `file://${path}` : `${pictures}/${path}`;
  }

  showDesk() {
    const row = this.rows[this.active], isThere = row !== undefined;
    for (const button of document.querySelectorAll("[data-act]")) button.disabled = !isThere;
    this.at("choose").querySelector("button").disabled = !isThere;
    this.at("class").value = "";
    if (!isThere) {
      this.at("frame").replaceChildren(element("span", { className: "blank", textContent: "No label matches the filters." }));
      for (const id of ["name", "given", "suggested", "decision", "why"]) this.at(id).textContent = "";
      this.at("evidence").replaceChildren();
      return;
    }
    const label = this.suggestion(row);
    this.at("frame").replaceChildren(this.picture(row, true));
    this.at("name").textContent = `${this.review.key} ${this.columns.example[row]}`;
    this.at("given").textContent = this.className(this.columns.given[row]);
    this.at("suggestion").hidden = label === null;
    this.at("suggested").textContent = label === null ? "" : this.className(label);
    this.at("why-title").textContent = this.columns.issue[row] ? "Why it is suspicious" : "What the training shows";
    const take = document.querySelector("[data-act=take]");
    take.disabled = label === null;
    take.firstElementChild.textContent = label === null ? "No suggestion" : `Take “${this.className(label)}”`;
    document.querySelector("[data-act=remove]").disabled = this.review.remove === null;
    this.at("decision").textContent = this.decisionText(row);
    this.at("why").textContent = this.why(row);
    this.showEvidence(row);
  }

  decisionText(row) {
    const decision = this.decisions.of(row);
    if (!decision) return "Undecided";
    return `Decided: ${MARKS[decision.act] ?? `change to “${this.className(decision.label)}”`}`;
  }

  why(row) {
    const c = this.columns, given = this.className(c.given[row]), count = c.observations[row];
    if (!count) return "The network has not seen this label during training.";
    const right = count - c.wrong_predictions[row];
    const often = right === 0 ? "never" : right === 1 ? "once" : `${right} times`;
    let text = `In ${plural(count, "prediction")} during training, the network chose “${given}” ${often} and other classes ${plural(c.wrong_predictions[row], "time")}.`;
    const label = this.suggestion(row);
    text += label === null ? " On average it agrees with the label." : ` On average it favors “${this.className(label)}”.`;
    if (c.mean_loss[row] !== null) {
      const below = this.losses.filter((loss) => loss < c.mean_loss[row]).length;
      const share = Math.min(99, Math.floor((100 * below) / this.losses.length));
      text += ` Its loss is larger than that of ${below === this.losses.length - 1 ? "all other" : `${share} % of the`} labels.`;
    }
    const margin = c.probability_margin[row];
    if (margin !== null) {
      text += margin < 0
        ? ` On average, another class was more probable by ${percent(-margin)}.`
        : ` On average, the label was more probable than any other class by ${percent(margin)}.`;
    }
    return text;
  }

  showEvidence(row) {
    const c = this.columns, yes = { 1: "yes", 0: "no" };
    const shown = {
      "label quality (1 = clean)": c.label_quality[row], "mean loss": c.mean_loss[row],
      "probability margin": c.probability_margin[row], "area under the margin": c.aum[row],
      agreement: c.agreement[row], "wrong predictions": c.wrong_predictions[row],
      "last prediction was the label": yes[c.last_correct[row]] ?? null,
    };
    this.at("evidence").replaceChildren(...Object.entries(shown).flatMap(([name, value]) => [
      element("dt", { textContent: name }),
      element("dd", { textContent: value === null ? "unknown" : typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : value }),
    ]));
  }

  act(name) {
    const row = this.rows[this.active];
    if (row === undefined) return;
    if (name === "take") {
      const label = this.suggestion(row);
      if (label === null) this.announce("There is no suggestion for this label.");
      else this.decide(row, { act: "class", label });
    } else if (name === "remove" && this.review.remove === null) {
      this.announce("A class is named remove, so corrections cannot leave examples out.");
    } else {
      this.decide(row, { act: name, label: name === "keep" ? this.columns.given[row] : null });
    }
  }

  chooseClass() {
    const input = this.at("class"), label = this.review.classes.indexOf(input.value), row = this.rows[this.active];
    if (label < 0) {
      input.setCustomValidity("Choose one of the classes.");
      input.reportValidity();
      return;
    }
    this.decide(row, { act: label === this.columns.given[row] ? "keep" : "class", label });
    this.focusTile();
  }

  decide(row, decision) {
    const isSaved = this.decisions.decide(row, decision);
    this.at("storage").hidden = isSaved;
    this.refresh(this.active);
    this.announce(`${this.review.key} ${this.columns.example[row]}, ${this.decisionText(row)}. ${this.showProgress()}`);
    // The buttons keep the focus, so a mouse or a thumb can stay where it is.
    const isAtTiles = this.at("tiles").contains(document.activeElement);
    if (this.active < this.rows.length - 1) this.activate(this.active + 1, isAtTiles);
    else this.showDesk();
  }

  undo() {
    const row = this.decisions.undo();
    if (row === null) return;
    const place = this.rows.indexOf(row), isAtTiles = this.at("tiles").contains(document.activeElement);
    if (place >= 0) {
      this.activate(place, isAtTiles);
      this.refresh(place);
    }
    this.announce(`Undone: ${this.review.key} ${this.columns.example[row]}. ${this.showProgress()}`);
    if (this.at("undo").disabled && document.activeElement === document.body) this.focusTile();
  }

  /** Shows the decision on a tile. */
  refresh(place) {
    const tile = this.at("tiles").querySelector(`[data-place="${place}"]`);
    if (tile) tile.querySelector(".mark").textContent = this.markText(this.rows[place]);
    if (place === this.active) this.at("decision").textContent = this.decisionText(this.rows[place]);
  }

  refreshAll() {
    for (const tile of this.at("tiles").children) this.refresh(Number(tile.dataset.place));
    this.showProgress();
  }

  showProgress() {
    const issues = this.columns.issue.reduce((sum, issue) => sum + issue, 0);
    const made = [...this.decisions.made.keys()];
    const done = made.filter((row) => this.columns.issue[row]).length;
    const text = issues
      ? `${done} of ${plural(issues, "likely error")} reviewed` + (made.length > done ? `, ${made.length - done} others` : "")
      : `${plural(made.length, "label")} reviewed`;
    this.at("progress-text").textContent = text;
    this.at("progress").max = issues || this.columns.given.length;
    this.at("progress").value = issues ? done : made.length;
    this.at("undo").disabled = !this.decisions.past.length;
    this.at("export").disabled = !made.length;
    this.at("export").textContent = made.length ? `Export corrections (${made.length})` : "Export corrections";
    return text;
  }

  announce(text) {
    this.at("announce").textContent = text;
  }

  export() {
    const url = URL.createObjectURL(new Blob([this.decisions.csv()], { type: "text/csv" }));
    element("a", { href: url, download: "corrections.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    this.announce("Exported corrections.csv.");
  }
}

(async () => {
  if (!document.getElementById("rows") || !("DecompressionStream" in window)) return;
  const review = JSON.parse(await unpack("rows"));
  let sheet = null;
  if (review.thumbnails) {
    sheet = new Image();
    sheet.src = review.thumbnails.url;
    await sheet.decode();
  }
  window.labelReview = new Review(review, sheet);
  document.documentElement.dataset.review = "ready";
})();
