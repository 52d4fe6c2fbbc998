/*
 * The map: footprints of the records shown, coloured by score, over a graticule (there are no tiles without a network; a tile URL
 * given to `btcchat report --tiles` adds them). Longitude and latitude on Web Mercator, or the scene's own plane where it has no
 * known place on the earth. Leaflet's canvas draws 10,000 polygons as one picture.
 */
"use strict";
btcchat.map = (function () {
  const box = document.getElementById("map-box"), button = document.getElementById("map-button");
  let map = null, layer = null, grid = null, chosen = null, renderer = null, stale = true;
  const shapes = new Map();

  function colour(r) {
    const t = Math.max(0, Math.min(1, (r.score || 0) / (btcchat.info.top_score || 1)));
    return "hsl(" + Math.round(215 - 190 * t) + " 75% " + Math.round(62 - 18 * t) + "%)";
  }
  const corners = (r) => r.ring.map((p) => [p[1], p[0]]);

  function step(span) {
    const raw = span / 5, power = Math.pow(10, Math.floor(Math.log10(raw)));
    return [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw);
  }
  function graticule() {
    const b = map.getBounds(), s = step(Math.max(b.getNorth() - b.getSouth(), 1e-9));
    const places = Math.max(0, -Math.floor(Math.log10(s)));
    grid.clearLayers();
    const line = (points) => L.polyline(points, { renderer: renderer, color: "#8894a1", weight: 1, opacity: .5, interactive: false }).addTo(grid);
    const text = (at, v) => L.marker(at, { interactive: false, keyboard: false, icon: L.divIcon({ className: "degree", html: v.toFixed(places), iconSize: null }) }).addTo(grid);
    for (let y = Math.ceil(b.getSouth() / s) * s, n = 0; y <= b.getNorth() && n < 40; y += s, n++) {
      line([[y, b.getWest()], [y, b.getEast()]]);
      text([y, b.getWest()], y);
    }
    for (let x = Math.ceil(b.getWest() / s) * s, n = 0; x <= b.getEast() && n < 40; x += s, n++) {
      line([[b.getSouth(), x], [b.getNorth(), x]]);
      text([b.getSouth(), x], x);
    }
  }
  function make() {
    map = L.map("map", { preferCanvas: true, crs: btcchat.info.plane ? L.CRS.Simple : L.CRS.EPSG3857, minZoom: btcchat.info.plane ? -30 : 0, attributionControl: Boolean(btcchat.info.tiles) });
    renderer = L.canvas({ padding: .3 });
    if (btcchat.info.tiles && !btcchat.info.plane) L.tileLayer(btcchat.info.tiles, { maxZoom: 22 }).addTo(map);
    grid = L.layerGroup().addTo(map);
    layer = L.layerGroup().addTo(map);
    map.on("moveend", () => requestAnimationFrame(graticule)); /* the first one comes before the map has a view */
  }
  function draw() {
    if (box.hidden) { stale = true; return; }
    if (!map) make();
    stale = false;
    layer.clearLayers();
    shapes.clear();
    const bounds = L.latLngBounds([]);
    btcchat.shown.forEach((r, at) => {
      if (!r.ring) return;
      const c = colour(r);
      const shape = L.polygon(corners(r), { renderer: renderer, color: c, weight: 1, fillColor: c, fillOpacity: r.changed ? .55 : .15 });
      shape.on("click", () => btcchat.select(at));
      shapes.set(r, shape);
      layer.addLayer(shape);
      bounds.extend(shape.getBounds());
    });
    map.invalidateSize();
    if (bounds.isValid()) map.fitBounds(bounds, { padding: [12, 12], animate: false, maxZoom: 19 });
    mark();
  }
  function mark() {
    if (!map || box.hidden) return;
    const r = btcchat.current();
    if (chosen) chosen.remove();
    chosen = r && r.ring ? L.polygon(corners(r), { renderer: renderer, color: "#d0021b", weight: 3, fill: false, interactive: false }).addTo(map) : null;
    if (chosen && !map.getBounds().intersects(chosen.getBounds())) map.panTo(chosen.getBounds().getCenter(), { animate: false });
  }
  function toggle() {
    if (button.hidden) return;
    box.hidden = !box.hidden;
    button.setAttribute("aria-pressed", !box.hidden);
    if (!box.hidden && stale) draw(); else if (map) map.invalidateSize();
  }
  button.addEventListener("click", toggle);
  btcchat.listen((what) => { if (what === "shown") draw(); if (what === "selected") mark(); });
  return {
    toggle: toggle,
    start: () => { button.hidden = typeof L === "undefined" || !btcchat.records.some((r) => r.ring); },
    shapes: () => shapes.size,
  };
})();
