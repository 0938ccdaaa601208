"use strict";
// The decisions of a review: what was decided, what came before, and the file to export.

class Decisions {
  /**
   * Each decision is an entry of its own, named by its example: pages of the same run in several tabs
   * do not overwrite each other, and a decision for the same example replaces the earlier one.
   *
   * @param {object} review What `review.make` returns.
   * @param {Storage} storage Where decisions survive; null for nowhere.
   * @param {Storage} session Where what can be undone in this tab survives a reload; null for nowhere.
   */
  constructor(review, storage, session) {
    this.review = review;
    this.storage = storage;
    this.session = session;
    this.place = `ssl_noisy.review.${review.id}`;
    this.rows = new Map(review.columns.example.map((example, row) => [String(example), row]));
    this.made = new Map(); // from row to {act, label}: label is the number of a class, or null
    this.past = []; // [example, what was decided before or null], of this tab
    this.restore();
  }

  /** The row's decision, or undefined. */
  of(row) {
    return this.made.get(row);
  }

  decide(row, decision) {
    const example = this.example(row);
    this.past.push([example, this.made.get(row) ?? null]);
    return this.set(example, decision) && this.savePast();
  }

  /** Takes the last decision of this tab back and returns its row; null if there is none. */
  undo() {
    if (!this.past.length) return null;
    const [example, before] = this.past.pop();
    this.set(example, before);
    this.savePast();
    return this.rows.get(example);
  }

  example(row) {
    return String(this.review.columns.example[row]);
  }

  key(example) {
    return `${this.place}/${example}`;
  }

  /** Keeps a decision, or removes it if it is null. Returns whether it will survive. */
  set(example, decision) {
    const row = this.rows.get(example);
    if (decision) this.made.set(row, decision);
    else this.made.delete(row);
    return attempt(() => {
      if (decision) this.storage.setItem(this.key(example), JSON.stringify(decision));
      else this.storage.removeItem(this.key(example));
    });
  }

  savePast() {
    return attempt(() => this.session.setItem(this.place, JSON.stringify(this.past)));
  }

  restore() {
    attempt(() => this.adopt());
    attempt(() => {
      for (let place = 0; place < this.storage.length; place += 1) this.read(this.storage.key(place));
    });
    attempt(() => {
      const past = JSON.parse(this.session.getItem(this.place)) ?? [];
      this.past = past.filter(([example]) => this.rows.has(example));
    });
  }

  /** Reads the entry of one decision. Returns its row, or null if the entry is another one. */
  read(key) {
    const example = key.startsWith(this.key("")) ? key.slice(this.key("").length) : null;
    if (!this.rows.has(example)) return null;
    const row = this.rows.get(example);
    const decision = parsed(this.storage.getItem(key));
    if (decision) this.made.set(row, decision);
    else this.made.delete(row);
    return row;
  }

  /** Follows a change that another tab made. Returns whether it concerns this run. */
  follow(event) {
    if (event.storageArea !== this.storage || event.key === null) return false;
    const row = this.read(event.key);
    if (row === null) return false;
    // What another tab decided is not undone here.
    this.past = this.past.filter(([example]) => example !== this.example(row));
    this.savePast();
    return true;
  }

  /** Takes over the single entry of all decisions, by row, that earlier versions wrote. */
  adopt() {
    const { made = [] } = parsed(this.storage.getItem(this.place)) ?? {};
    for (const [row, decision] of made) {
      const isNew = this.storage.getItem(this.key(this.example(row))) === null;
      if (isNew && !this.set(this.example(row), decision)) return;
    }
    this.storage.removeItem(this.place);
  }

  /** Returns the text of a file that --labels_csv reads, with the run's earlier corrections. */
  csv() {
    const { key, classes, earlier, remove } = this.review;
    const labels = new Map(earlier);
    for (const [row, { act, label }] of [...this.made].sort((a, b) => a[0] - b[0])) {
      const text = act === "remove" ? remove : act === "unlabel" ? "" : classes[label];
      labels.set(this.example(row), text);
    }
    const quoted = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [...labels].map(([example, label]) => `${quoted(example)},${quoted(label)}\n`);
    return `${key},label\n${lines.join("")}`;
  }
}

/** Calls a function that may fail: a browser may have no storage, or a full one. Returns whether it did not. */
function attempt(action) {
  try {
    action();
    return true;
  } catch {
    return false;
  }
}

/** Returns what a text of JSON contains, or null if this page has not written it. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
