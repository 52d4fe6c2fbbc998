/* The list: only the rows in sight (and some around) exist, so 10,000 records cost what 30 do. Rows are used again. */
"use strict";
btcchat.list = (function () {
  const ROW = 84, SPARE = 6;
  const box = document.getElementById("list"), rows = document.getElementById("rows");
  const free = [], live = new Map();
  let waiting = false;

  function make() {
    const row = document.createElement("div");
    row.className = "row";
    row.setAttribute("role", "option");
    const img = document.createElement("img");
    img.alt = "";
    img.loading = "lazy";
    img.decoding = "async";
    const side = document.createElement("div"), mark = document.createElement("span"), text = document.createElement("div"), small = document.createElement("div");
    mark.className = "mark";
    side.append(mark, text, small);
    row.append(img, side);
    row.parts = { img, mark, text, small };
    row.addEventListener("click", () => { btcchat.select(row.at); box.focus({ preventScroll: true }); });
    return row;
  }

  function fill(row, at) {
    const r = btcchat.shown[at], p = row.parts, label = btcchat.labels.of(r.id);
    row.at = at;
    row.id = "row-" + at;
    row.style.transform = "translateY(" + at * ROW + "px)";
    row.setAttribute("aria-selected", at === btcchat.selected);
    row.setAttribute("aria-posinset", at + 1);
    row.setAttribute("aria-setsize", btcchat.shown.length);
    p.text.textContent = r.caption || r.message || r.reason || r.status;
    p.text.className = r.caption && r.changed !== false ? "text" : "text quiet";
    p.small.className = "small";
    p.small.textContent = [r.score === undefined ? "" : r.score.toFixed(3), r.time || "", r.id].filter(Boolean).join("  ·  ");
    p.mark.className = "mark " + (label || "");
    p.mark.textContent = label === "accept" ? "✓" : label === "reject" ? "✗" : "";
    p.mark.setAttribute("aria-label", label ? label + "ed" : "");
    const src = r.after || r.before || "";
    p.img.style.visibility = src ? "" : "hidden";
    if (src && p.img.getAttribute("src") !== src) p.img.src = src;
  }

  function draw() {
    waiting = false;
    const n = btcchat.shown.length;
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - SPARE);
    const last = Math.min(n, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + SPARE);
    for (const [at, row] of live)
      if (at < first || at >= last) {
        live.delete(at);
        row.remove();
        free.push(row);
      }
    for (let at = first; at < last; at++) {
      let row = live.get(at);
      if (!row) {
        row = free.pop() || make();
        live.set(at, row);
        rows.append(row);
      }
      fill(row, at);
    }
    if (n) box.setAttribute("aria-activedescendant", "row-" + btcchat.selected); else box.removeAttribute("aria-activedescendant");
  }
  function soon() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  function reveal() {
    const top = btcchat.selected * ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
  }

  const empty = document.createElement("p");
  empty.className = "empty";
  empty.textContent = "No record matches.";
  box.append(empty);

  box.addEventListener("scroll", soon, { passive: true });
  new ResizeObserver(soon).observe(box);
  btcchat.listen((what) => {
    if (what === "shown") {
      rows.style.height = btcchat.shown.length * ROW + "px";
      empty.hidden = btcchat.shown.length > 0;
    }
    if (what === "selected" && btcchat.selected >= 0) reveal();
    soon();
  });
  return { focus: () => box.focus({ preventScroll: true }), rows: () => live.size };
})();
