/*
 * The records of the gallery and what is shown of them.
 *
 * The page works from file://, where nothing can be fetched: data/header.js and data/NNNN.js are scripts that call btcchat.header and
 * btcchat.chunk. Captions, ids and meta are texts of others: they only ever become textContent, never HTML, and file names of images
 * are the gallery's own.
 */
"use strict";
var btcchat = (function () {
  const self = { info: null, records: [], shown: [], selected: -1 };
  const listeners = [];

  self.header = function (info) { self.info = info; };
  self.chunk = function (records) {
    for (const r of records) {
      r.order = self.records.length;
      r.words = ((r.caption || "") + " " + r.id).toLowerCase();
      self.records.push(r);
    }
  };

  self.listen = function (f) { listeners.push(f); };
  function tell(what) { for (const f of listeners) f(what); }

  function passes(r, f) {
    if (f.changed && r.changed !== (f.changed === "yes")) return false;
    if (f.status && r.status !== f.status) return false;
    if (f.label && (btcchat.labels.of(r.id) || "none") !== f.label) return false;
    return f.words.every((w) => r.words.includes(w));
  }

  /* Records without the value come last, equal ones stay as in the run. */
  function by(value, sign) {
    return (a, b) => {
      const x = value(a), y = value(b), none = (v) => v === undefined || v === "";
      if (none(x) || none(y)) return none(x) - none(y) || a.order - b.order;
      return (x < y ? -sign : x > y ? sign : 0) || a.order - b.order;
    };
  }
  const orders = {
    "run": (a, b) => a.order - b.order,
    "score-": by((r) => r.score, -1), "score+": by((r) => r.score, 1),
    "time-": by((r) => r.time, -1), "time+": by((r) => r.time, 1),
    "id": by((r) => r.id, 1),
  };

  /* filter: {words: "", changed: "", status: "", label: "", order: "run"}; the selected record stays selected when it still shows. */
  self.filter = function (filter) {
    const f = Object.assign({}, filter, { words: filter.words.toLowerCase().split(/\s+/).filter(Boolean) });
    const old = self.current();
    self.shown = self.records.filter((r) => passes(r, f)).sort(orders[f.order] || orders.run);
    self.selected = old ? self.shown.indexOf(old) : -1;
    if (self.selected < 0 && self.shown.length) self.selected = 0;
    tell("shown");
    tell("selected");
  };

  self.current = function () { return self.shown[self.selected]; };
  self.select = function (at) {
    at = Math.max(0, Math.min(self.shown.length - 1, at));
    if (at === self.selected || !self.shown.length) return;
    self.selected = at;
    tell("selected");
  };
  self.labelled = function () { tell("labels"); };
  return self;
})();
