// Keeps the page current. The server has filled it already, by the same rules (memscaler/observe/pages.py).

const WINDOW_S = 600;
const GAP_S = 90; // no line across a time in which nobody measured
const SILENCE_MS = 12000; // the server says something every 2 s
const AGAIN_MS = 3000;
const SVG = "http://www.w3.org/2000/svg";

const html = document.documentElement;
const live = document.getElementById("live");
const lost = document.getElementById("lost");
const said = document.getElementById("said");
const power = new Map(); // GPU -> its points: [seconds, watts]
const plots = new WeakMap(); // svg -> what is drawn
let states = null; // GPU -> the state that was told
let source = null;
let silence = 0;
let again = 0;

// ---- texts ----

const own = (scope, selector) =>
  [...scope.querySelectorAll(selector)].filter((each) => {
    const entry = each.closest("[data-key]");
    return scope === document ? entry === null : entry === scope;
  });

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function fill(scope, fields) {
  for (const each of own(scope, "[data-field]")) set(each, fields[each.dataset.field] ?? "");
  for (const each of own(scope, "[data-when]")) each.hidden = !fields[each.dataset.when];
  for (const each of own(scope, "[data-value]")) each.dataset.is = fields[each.dataset.value] ?? "";
  for (const each of own(scope, "[data-time]")) each.dateTime = fields[each.dataset.time] ?? "";
  if (scope !== document && "value" in scope.dataset) scope.dataset.is = fields[scope.dataset.value] ?? "";
}

function list(name, entries) {
  const box = document.querySelector(`[data-list="${name}"]`);
  const template = box.querySelector(":scope > template");
  const known = new Map([...box.querySelectorAll(":scope > [data-key]")].map((each) => [each.dataset.key, each]));
  let before = template;
  for (const { key, fields } of entries) {
    const element = known.get(key) ?? template.content.firstElementChild.cloneNode(true);
    known.delete(key);
    element.dataset.key = key;
    if (before.nextElementSibling !== element) before.after(element);
    fill(element, fields);
    before = element;
  }
  for (const gone of known.values()) gone.remove();
}

function show(now) {
  if (now.edition !== html.dataset.assets) {
    location.reload(); // memscaler was upgraded
    return;
  }
  fill(document, now.fields);
  for (const [name, entries] of Object.entries(now.lists)) list(name, entries);
  for (const entry of document.querySelectorAll('[data-list="gpus"] > [data-key]')) plot(entry, now);
  announce(now.lists.gpus);
}

// Of changes only: who cannot see the page does not want to hear its figures every 2 s.
function announce(gpus) {
  const told = new Map(gpus.map(({ key, fields }) => [key, fields.state]));
  const news = gpus.filter(({ key, fields }) => states !== null && states.get(key) !== fields.state);
  if (news.length) say(news.map(({ fields }) => `${fields.gpu} is ${fields.state} now.`).join(" "));
  states = told;
}

function say(text) {
  said.textContent = text;
}

// ---- plots ----

function draw(parent, name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

// The least of 10, 15, 20, 30, 40, 50, 60, 80, 100, 150, ... that all of them are below.
function ceiling(watts) {
  const most = Math.max(10, ...watts) * 1.05;
  const ten = 10 ** Math.floor(Math.log10(most));
  return ten * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((each) => each * ten >= most);
}

function plot(entry, now) {
  const svg = entry.querySelector(".plot svg");
  const { states, power: news } = now.plots[entry.dataset.key];
  const kept = now.whole ? [] : (power.get(entry.dataset.key) ?? []);
  const points = [...kept, ...news].filter(([at]) => at > now.at - WINDOW_S);
  power.set(entry.dataset.key, points);
  const top = ceiling(points.map(([, watts]) => watts));
  const x = (at) => Math.max(0, 600 - (now.at - at)).toFixed(1);
  const y = (watts) => (100 - (watts / top) * 100).toFixed(1);
  svg.replaceChildren();
  for (const level of [25, 50, 75]) draw(svg, "line", { class: "grid", x1: 0, x2: 600, y1: level, y2: level });
  states.forEach(([since, state], index) => {
    const until = states[index + 1]?.[0] ?? now.at;
    if (state === "parked") draw(svg, "rect", { class: "band", x: x(since), y: 0, height: 100, width: x(until) - x(since) });
  });
  for (const run of runs(points)) {
    const line = run.map(([at, watts]) => `${x(at)} ${y(watts)}`).join("L");
    draw(svg, "path", { class: "area", d: `M${x(run[0][0])} 100L${line}L${x(run.at(-1)[0])} 100Z` });
    draw(svg, "path", { class: "curve", d: `M${line}` });
  }
  const mark = draw(svg, "line", { class: "mark", x1: -9, x2: -9, y1: 0, y2: 100 });
  set(entry.querySelector(".most"), `${top} W`);
  svg.setAttribute("aria-label", spoken(points));
  if (!plots.has(svg)) {
    svg.addEventListener("pointermove", (event) => point(svg, event));
    svg.addEventListener("pointerleave", () => point(svg, null));
  }
  plots.set(svg, { ...plots.get(svg), points, at: now.at, mark });
  point(svg, plots.get(svg).event);
}

function runs(points) {
  const found = [];
  for (const point of points) {
    const last = found.at(-1)?.at(-1);
    if (last && point[0] - last[0] <= GAP_S) found.at(-1).push(point);
    else found.push([point]);
  }
  return found;
}

function spoken(points) {
  if (!points.length) return "Power: nothing was measured in the last 10 minutes.";
  const watts = points.map(([, each]) => each);
  return `Power of the last 10 minutes: from ${Math.min(...watts)} to ${Math.max(...watts)} watts, ${watts.at(-1)} now.`;
}

// What the curve says where the pointer is.
function point(svg, event) {
  const drawn = plots.get(svg);
  drawn.event = event;
  const readout = svg.closest("figure").querySelector(".readout");
  if (!event || !drawn.points.length) {
    drawn.mark.setAttribute("visibility", "hidden");
    set(readout, "");
    return;
  }
  const box = svg.getBoundingClientRect();
  const at = drawn.at - WINDOW_S + ((event.clientX - box.left) / box.width) * WINDOW_S;
  const near = drawn.points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
  const x = 600 - (drawn.at - near[0]);
  drawn.mark.setAttribute("visibility", "visible");
  for (const end of ["x1", "x2"]) drawn.mark.setAttribute(end, x.toFixed(1));
  const ago = Math.round(drawn.at - near[0]);
  set(readout, `${near[1].toFixed(1)} W, ${ago >= 60 ? `${Math.floor(ago / 60)} min ` : ""}${ago % 60} s ago`);
}

// ---- the connection ----

function heard() {
  clearTimeout(silence);
  silence = setTimeout(() => {
    lose("memscaler has fallen silent");
    listen();
  }, SILENCE_MS);
}

function find(now) {
  if (html.classList.contains("stale")) say("Connected again.");
  html.classList.remove("stale");
  lost.hidden = true;
  live.dataset.is = "on";
  set(live, "Live");
  show(now);
}

function lose(why) {
  live.dataset.is = "off";
  set(live, "Not connected");
  if (html.classList.contains("stale")) return;
  html.classList.add("stale");
  lost.textContent = `Connection lost at ${new Date().toLocaleTimeString()}: ${why}. What you see is old. Trying again.`;
  lost.hidden = false;
  say(lost.textContent);
}

function listen() {
  leave();
  source = new EventSource("events");
  source.addEventListener("now", (event) => {
    heard();
    find(JSON.parse(event.data));
  });
  source.addEventListener("silent", () => {
    heard();
    lose("the governor does not answer");
  });
  source.addEventListener("full", () => {
    heard();
    lose("too many of these pages are open");
  });
  source.addEventListener("error", () => {
    lose("memscaler does not answer");
    if (source.readyState === EventSource.CLOSED) again = setTimeout(listen, AGAIN_MS); // else the browser tries again
  });
  heard();
}

function leave() {
  clearTimeout(silence);
  clearTimeout(again);
  source?.close();
}

// A page that nobody sees costs nothing: nobody measures for it.
document.addEventListener("visibilitychange", () => (document.hidden ? leave() : listen()));
addEventListener("pagehide", leave);
addEventListener("pageshow", (event) => event.persisted && listen());
html.classList.add("follows");
if (!document.hidden) listen();
