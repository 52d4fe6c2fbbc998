/* The chosen record: the two dates under a slider, the change map over them, caption, verdict, score, where and when. */
"use strict";
btcchat.viewer = (function () {
  const at = (id) => document.getElementById(id);
  const frame = at("frame"), slider = at("slider"), heat = at("heat"), heatOn = at("heat-on");

  function cut(percent) {
    slider.value = percent;
    frame.style.setProperty("--cut", slider.value + "%");
    slider.setAttribute("aria-valuetext", slider.value + " percent before");
  }
  function image(img, src) {
    if (src) img.src = src; else img.removeAttribute("src");
    img.hidden = !src;
  }
  function pictures(r) {
    const any = Boolean(r.before || r.after);
    frame.hidden = !any;
    at("no-images").hidden = any;
    at("no-images").textContent = r.problem || "No images: " + (r.message || r.reason || "none were found for this record");
    frame.style.setProperty("--aspect", r.width && r.height ? r.width / r.height : 1);
    image(at("before"), r.before);
    image(at("after"), r.after);
    at("before").alt = "before: " + (r.dates && r.dates[0] || "");
    at("after").alt = "after: " + (r.dates && r.dates[1] || "");
    at("heat-box").hidden = !r.heat;
    overlay(r);
  }
  function overlay(r) {
    const on = Boolean(r && r.heat && heatOn.checked);
    image(heat, on ? r.heat : "");
    at("strength-box").hidden = !on;
  }
  function fact(dl, name, value) {
    if (value === undefined || value === "" || value === null) return;
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    dl.append(dt, dd);
  }
  function facts(r) {
    const dl = at("details");
    dl.replaceChildren();
    fact(dl, "id", r.id);
    fact(dl, "dates", r.dates && r.dates.filter(Boolean).join(" to "));
    fact(dl, "window", r.window && r.window[2] + " x " + r.window[3] + " pixels at " + r.window[0] + ", " + r.window[1]);
    fact(dl, "reason", r.reason);
    fact(dl, "message", r.message);
    fact(dl, "largest change", r.heat && r.top !== undefined ? r.top.toFixed(3) + " (palest colour of the map)" : "");
    fact(dl, "meta", r.meta && JSON.stringify(r.meta));
  }
  function labels(r) {
    const label = r && btcchat.labels.of(r.id);
    at("accept").setAttribute("aria-pressed", label === "accept");
    at("reject").setAttribute("aria-pressed", label === "reject");
  }
  function show() {
    const r = btcchat.current();
    at("view").hidden = !r;
    if (!r) return;
    pictures(r);
    at("caption").textContent = r.caption || "(no caption)";
    at("verdict").textContent = r.changed === undefined ? "" : r.changed ? "changed" : "unchanged";
    at("verdict").className = "chip " + (r.changed ? "yes" : "no");
    at("state").textContent = r.status === "ok" ? "" : r.status;
    at("state").className = "chip " + (r.status === "failed" ? "failed" : "no");
    at("score").textContent = r.score === undefined ? "" : "score " + r.score.toFixed(4);
    facts(r);
    labels(r);
  }

  slider.addEventListener("input", () => cut(slider.value));
  slider.addEventListener("keydown", (e) => { if (e.key.startsWith("Arrow") || e.key === "Home" || e.key === "End" || e.key.startsWith("Page")) e.preventDefault(); });
  heatOn.addEventListener("change", () => overlay(btcchat.current()));
  at("strength").addEventListener("input", (e) => frame.style.setProperty("--strength", e.target.value / 100));
  for (const label of ["accept", "reject"])
    at(label).addEventListener("click", () => { const r = btcchat.current(); if (r) btcchat.labels.toggle(r.id, label); });
  btcchat.listen((what) => { if (what === "selected") show(); if (what === "labels") labels(btcchat.current()); });
  cut(50);
  return {
    move: (by) => { frame.classList.add("slide"); cut(Number(slider.value) + by); },
    toggleHeat: () => { heatOn.checked = !heatOn.checked; overlay(btcchat.current()); },
  };
})();
