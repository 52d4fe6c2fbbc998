/* Loads the chunks one after the other, then ties filters, buttons and keys to the parts of the page. */
"use strict";
(function () {
  const at = (id) => document.getElementById(id);
  const filters = ["words", "changed", "status", "label", "order"];

  function script(src) {
    return new Promise((done, failed) => {
      const s = document.createElement("script");
      s.src = src;
      s.onload = () => { s.remove(); done(); };
      s.onerror = () => failed(new Error(src + " cannot be read"));
      document.body.append(s);
    });
  }
  function count() {
    const all = btcchat.records.length, some = btcchat.shown.length, labels = btcchat.labels.count();
    const n = (k) => k.toLocaleString("en");
    at("count").textContent = (some === all ? n(all) + " records" : n(some) + " of " + n(all) + " records") + (labels ? ", " + n(labels) + " labelled" : "") +
      (btcchat.labels.stored() ? "" : " (this browser keeps no labels: export them)");
  }
  function filter() {
    const f = {};
    for (const name of filters) f[name] = at(name).value;
    btcchat.filter(f);
    count();
  }
  function help() { if (at("help").open) at("help").close(); else at("help").showModal(); }

  const keys = {
    ArrowDown: () => btcchat.select(btcchat.selected + 1), ArrowUp: () => btcchat.select(btcchat.selected - 1),
    PageDown: () => btcchat.select(btcchat.selected + 10), PageUp: () => btcchat.select(btcchat.selected - 10),
    Home: () => btcchat.select(0), End: () => btcchat.select(btcchat.shown.length - 1),
    ArrowLeft: () => btcchat.viewer.move(-5), ArrowRight: () => btcchat.viewer.move(5),
    a: () => at("accept").click(), r: () => at("reject").click(),
    h: () => btcchat.viewer.toggleHeat(), m: () => btcchat.map.toggle(),
    "/": () => at("words").focus(), "?": help,
  };
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.altKey || e.metaKey || at("help").open) return;
    const t = e.target, writes = t.matches("input[type=search], select");
    if (e.key === "Escape" && writes) { btcchat.list.focus(); return; }
    if (writes || (t.id === "strength" && e.key.startsWith("Arrow")) || t.closest("#map")) return;
    if (!keys[e.key]) return;
    e.preventDefault();
    keys[e.key]();
  });

  let later = 0;
  at("words").addEventListener("input", () => { clearTimeout(later); later = setTimeout(filter, 80); });
  for (const name of filters.slice(1)) at(name).addEventListener("change", filter);
  at("filters").addEventListener("submit", (e) => { e.preventDefault(); filter(); });
  at("help-button").addEventListener("click", help);
  at("export-json").addEventListener("click", btcchat.labels.saveJson);
  at("export-csv").addEventListener("click", btcchat.labels.saveCsv);
  btcchat.listen((what) => { if (what === "labels") { if (at("label").value) filter(); count(); } });

  async function start() {
    await script("data/header.js");
    at("title").textContent = document.title = btcchat.info.title;
    for (let i = 1; i <= btcchat.info.chunks; i++) {
      await script("data/" + String(i).padStart(4, "0") + ".js");
      at("count").textContent = "Loading " + Math.round(100 * i / btcchat.info.chunks) + " %";
    }
    btcchat.labels.load();
    btcchat.map.start();
    filter();
    btcchat.list.focus();
    document.body.dataset.ready = "yes";
  }
  start().catch((e) => { at("count").textContent = "This gallery is not whole: " + e.message; });
})();
