"use strict";
// The decisions of a review: what was decided, what came before, and the file to export.

class Decisions {
  /**
   * @param {object} review What `review.make` returns.
   * @param {Storage} storage Where decisions survive a reload; null for nowhere.
   */
  constructor(review, storage) {
    this.review = review;
    this.storage = storage;
    this.place = `ssl_noisy.review.${review.id}`;
    this.made = new Map(); // from row to {act, label}: label is the number of a class, or null
    this.past = []; // [row, what was decided before or null]
    this.restore();
  }

  /** The row's decision, or undefined. */
  of(row) {
    return this.made.get(row);
  }

  decide(row, decision) {
    this.past.push([row, this.made.get(row) ?? null]);
    this.made.set(row, decision);
    return this.save();
  }

  /** Takes the last decision back and returns its row; null if there is none. */
  undo() {
    if (!this.past.length) return null;
    const [row, before] = this.past.pop();
    if (before) this.made.set(row, before);
    else this.made.delete(row);
    this.save();
    return row;
  }

  save() {
    try {
      this.storage.setItem(this.place, JSON.stringify({ made: [...this.made], past: this.past }));
      return true;
    } catch {
      return false; // no storage, or it is full
    }
  }

  restore() {
    try {
      const { made, past } = JSON.parse(this.storage.getItem(this.place)) ?? { made: [], past: [] };
      this.made = new Map(made);
      this.past = past;
    } catch {
      // Nothing that this page has written: it starts without decisions.
    }
  }

  /** Returns the text of a file that --labels_csv reads, with the run's earlier corrections. */
  csv() {
    const { key, classes, columns, earlier, remove } = this.review;
    const labels = new Map(earlier);
    for (const [row, { act, label }] of this.made) {
      const text = act === "remove" ? remove : act === "unlabel" ? "" : classes[label];
      labels.set(String(columns.example[row]), text);
    }
    const quoted = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [...labels].map(([example, label]) => `${quoted(example)},${quoted(label)}\n`);
    return `${key},label\n${lines.join("")}`;
  }
}
