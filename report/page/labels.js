/*
 * Accept and reject, kept in localStorage under the gallery's own key (its digest of ids), so that two galleries on one disk do not
 * share labels. Exported as JSON or CSV through a download.
 */
"use strict";
btcchat.labels = (function () {
  const labels = new Map();
  let key = "", stored = true;

  function load() {
    key = "btcchat-labels:" + btcchat.info.digest;
    try {
      for (const [id, v] of Object.entries(JSON.parse(localStorage.getItem(key) || "{}")))
        if (v === "accept" || v === "reject") labels.set(id, v);
    } catch (e) { stored = false; }
  }
  function save() {
    try { localStorage.setItem(key, JSON.stringify(Object.fromEntries(labels))); } catch (e) { stored = false; }
  }
  function toggle(id, label) {
    if (labels.get(id) === label) labels.delete(id); else labels.set(id, label);
    save();
    btcchat.labelled();
  }
  function rows() { return btcchat.records.filter((r) => labels.has(r.id)); }

  function json() {
    return JSON.stringify({ v: 1, gallery: btcchat.info.digest, title: btcchat.info.title,
      labels: rows().map((r) => ({ id: r.id, label: labels.get(r.id), caption: r.caption, changed: r.changed, score: r.score })) }, null, 1) + "\n";
  }
  /* RFC 4180. A cell that a spreadsheet would take for a formula gets an apostrophe in front. */
  function cell(v) {
    let s = v === undefined ? "" : String(v);
    if (/^[=+\-@\t\r]/.test(s) && typeof v === "string") s = "'" + s;
    return /[",\r\n]/.test(s) ? '"' + s.replace(/"/g, '""') + '"' : s;
  }
  function csv() {
    const head = "id,label,caption,changed,score";
    return [head].concat(rows().map((r) => [r.id, labels.get(r.id), r.caption, r.changed, r.score].map(cell).join(","))).join("\r\n") + "\r\n";
  }
  function download(name, type, text) {
    const a = document.createElement("a"), url = URL.createObjectURL(new Blob([text], { type: type }));
    a.href = url;
    a.download = name;
    a.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
  return {
    load: load, toggle: toggle, json: json, csv: csv,
    of: (id) => labels.get(id),
    count: () => labels.size,
    stored: () => stored,
    saveJson: () => download("labels.json", "application/json", json()),
    saveCsv: () => download("labels.csv", "text/csv", csv()),
  };
})();
