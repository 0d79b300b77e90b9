// What /metrics, /readyz and /v1/peers say, as it changes. Rates are over the last seconds, counted in this page; the node
// keeps nothing for it.
"use strict";

const EVERY_MS = 2000;
// whoever hangs does not answer
const PATIENCE_MS = 10_000;
const WINDOW_MS = 10000; // rates and percentiles
const KEPT = 150; // samples of a curve: five minutes

const samples = []; // { at, metrics }
const curves = new Map(); // card -> values
const $ = (id) => document.getElementById(id);

// Prometheus' text format: name -> [{ labels, value }]
function parse(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    if (!metrics.has(found[1])) metrics.set(found[1], []);
    metrics.get(found[1]).push({ labels, value: Number(found[3].replace("Inf", "Infinity")) });
  }
  return metrics;
}

const matches = (labels, wanted) =>
  Object.entries(wanted).every(([name, value]) => (value instanceof RegExp ? value.test(labels[name] || "") : labels[name] === value));
const sum = (metrics, name, wanted = {}) =>
  (metrics.get(name) || []).reduce((all, it) => (matches(it.labels, wanted) ? all + it.value : all), 0);

const newest = () => samples[samples.length - 1];
function oldest() {
  return samples.find((it) => newest().at - it.at <= WINDOW_MS + EVERY_MS / 2) || samples[0];
}
// Growth of a counter over the window; a restart begins at zero.
function growth(name, wanted) {
  const now = sum(newest().metrics, name, wanted);
  const then = sum(oldest().metrics, name, wanted);
  return now < then ? now : now - then;
}
const seconds = () => Math.max((newest().at - oldest().at) / 1000, 0.001);
const rate = (name, wanted) => growth(name, wanted) / seconds();

// From a histogram's buckets, as histogram_quantile does: linear within a bucket.
function quantile(q, name, wanted) {
  const bounds = new Map();
  for (const { labels } of newest().metrics.get(`${name}_bucket`) || []) if (matches(labels, wanted)) bounds.set(labels.le, 0);
  const buckets = [...bounds.keys()]
    .map((le) => ({ le: le === "+Inf" ? Infinity : Number(le), count: growth(`${name}_bucket`, { ...wanted, le }) }))
    .sort((a, b) => a.le - b.le);
  const total = buckets.length ? buckets[buckets.length - 1].count : 0;
  if (!total) return null;
  let below = { le: 0, count: 0 };
  for (const bucket of buckets) {
    if (bucket.count >= q * total) {
      if (bucket.le === Infinity) return below.le;
      const share = bucket.count > below.count ? (q * total - below.count) / (bucket.count - below.count) : 1;
      return below.le + (bucket.le - below.le) * share;
    }
    below = bucket;
  }
  return below.le;
}

const number = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : value < 100 ? 1 : 0 });
function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${number(value)} ${units[unit]}`;
}
function time(s) {
  if (s === null || Number.isNaN(s)) return "–";
  if (s < 0.001) return `${number(s * 1e6)} µs`;
  if (s < 1) return `${number(s * 1000)} ms`;
  if (s < 120) return `${number(s)} s`;
  if (s < 7200) return `${number(s / 60)} min`;
  return s < 172800 ? `${number(s / 3600)} h` : `${number(s / 86400)} days`;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function card(title, value, shown, hint) {
  if (!curves.has(title)) curves.set(title, []);
  const values = curves.get(title);
  values.push(value === null || Number.isNaN(value) ? 0 : value);
  if (values.length > KEPT) values.shift();
  const made = element("div", undefined, "card");
  made.title = hint;
  made.append(element("div", title, "title"), element("div", shown, "value"), curve(values));
  return made;
}

function curve(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${KEPT - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const top = Math.max(...values, 1e-9) * 1.1;
  const from = KEPT - values.length;
  const points = values.map((value, at) => `${from + at},${(100 - (value / top) * 100).toFixed(1)}`);
  for (const [tag, all] of [["polygon", [`${from},100`, ...points, `${KEPT - 1},100`]], ["polyline", points]]) {
    const shape = document.createElementNS("http://www.w3.org/2000/svg", tag);
    shape.setAttribute("points", all.join(" "));
    svg.append(shape);
  }
  return svg;
}

function rows(id, all, none) {
  const body = $(id).tBodies[0];
  const made = all.map((cells) => {
    const row = element("tr");
    for (const cell of cells) row.append(cell instanceof Element ? cell : element("td", cell));
    return row;
  });
  if (!made.length) {
    const cell = element("td", none, "muted");
    cell.colSpan = $(id).tHead.rows[0].cells.length;
    const row = element("tr");
    row.append(cell);
    made.push(row);
  }
  body.replaceChildren(...made);
}
const n = (text, isBad) => element("td", text, isBad ? "n bad" : "n");

function cards() {
  const { metrics } = newest();
  const operations = { endpoint: /group_operation$/ };
  const p99 = quantile(0.99, "mimid_http_request_seconds", operations);
  const p50 = quantile(0.5, "mimid_http_request_seconds", operations);
  const flushes = growth("mimid_store_flushes_total");
  const flush = flushes ? growth("mimid_store_flush_seconds_total") / flushes : null;
  const now = (name) => sum(metrics, name);
  const requests = rate("mimid_http_requests_total");
  const accepted = rate("mimid_group_accepted_total");
  const commits = rate("mimid_group_commits_total");
  const entries = rate("mimid_queue_entries_delivered_total");
  const cores = rate("process_cpu_seconds_total");
  const [rss, disk] = [now("process_resident_memory_bytes"), now("mimid_store_disk_bytes")];
  $("cards").replaceChildren(
    card("requests a second", requests, number(requests), "answered, at both listeners"),
    card("group operations, p50", p50, time(p50), "half are answered sooner"),
    card("group operations, p99", p99, time(p99), "one in a hundred waits longer"),
    card("accepted a second", accepted, number(accepted), "commits, proposals and messages that groups took"),
    card("commits a second", commits, number(commits), "of these"),
    card("delivered a second", entries, number(entries), "entries, to clients, repeats included"),
    card("streams", now("mimid_streams_open"), number(now("mimid_streams_open")), "clients that listen now"),
    card("groups in memory", now("mimid_group_actors"), number(now("mimid_group_actors")), "the others cost nothing"),
    card("flush", flush, time(flush), "from the engine's change to what survives a power cut"),
    card("store", disk, bytes(disk), "on the disk"),
    card("memory", rss, bytes(rss), "resident"),
    card("CPU", cores, `${number(cores)} cores`, "in use"),
  );
}

function endpoints() {
  const seen = new Map();
  for (const { labels, value } of newest().metrics.get("mimid_http_requests_total") || []) {
    const key = `${labels.listener} ${labels.endpoint}`;
    const known = seen.get(key) || { labels, total: 0 };
    seen.set(key, { labels, total: known.total + value });
  }
  const all = [...seen.values()].map(({ labels: { listener, endpoint }, total }) => {
    const wanted = { listener, endpoint };
    const failed = sum(newest().metrics, "mimid_http_requests_total", { ...wanted, status: /^5/ });
    return { listener, endpoint, total, failed, rate: rate("mimid_http_requests_total", wanted), wanted };
  });
  all.sort((a, b) => b.rate - a.rate || b.total - a.total);
  rows("endpoints", all.map((it) => [
    it.listener, it.endpoint, n(number(it.rate)), n(time(quantile(0.5, "mimid_http_request_seconds", it.wanted))),
    n(time(quantile(0.99, "mimid_http_request_seconds", it.wanted))), n(number(it.failed), it.failed > 0), n(number(it.total)),
  ]), "nobody has asked yet");
}

function refusals() {
  const all = [];
  const add = (name, is, describe) => {
    for (const { labels, value } of newest().metrics.get(name) || []) {
      if (value > 0 && is(labels)) all.push({ ...describe(labels), total: value, rate: rate(name, labels) });
    }
  };
  add("mimid_ds_requests_total", (it) => it.status !== "ok", (it) => ({ what: it.operation, why: it.status }));
  add("mimid_http_requests_total", (it) => /^[45]/.test(it.status), (it) => ({ what: `${it.listener} ${it.endpoint}`, why: `HTTP ${it.status}` }));
  add("mimid_federation_received_total", (it) => it.outcome !== "ok", (it) => ({ what: `from a provider: ${it.endpoint}`, why: it.outcome }));
  add("mimid_requests_shed_total", () => true, (it) => ({ what: `not taken in: ${it.class}`, why: it.reason }));
  all.sort((a, b) => b.rate - a.rate || b.total - a.total);
  rows("refusals", all.slice(0, 12).map((it) => [it.what, it.why, n(number(it.rate)), n(number(it.total))]), "nothing was refused");
}

const CIRCUITS = { closed: "reached", half_open: "is it back?", open: "out of reach" };

function peers(answer) {
  const all = (answer.peers || []).map(({ domain, admitted, outbox }) => {
    const state = !admitted ? "not spoken with" : !outbox ? "nothing was sent" : CIRCUITS[outbox.circuit];
    const [items, since] = outbox ? [outbox.items, outbox.oldest_at] : [0, null];
    return [
      domain, element("td", state, outbox && outbox.circuit !== "closed" ? "bad" : ""), n(number(items)),
      n(since === null || since === undefined ? "–" : time((answer.now - since) / 1000)), n(number(outbox ? outbox.items_delivered : 0)),
      (outbox && outbox.last_error) || "",
    ];
  });
  rows("peers", all, answer.federates ? "none is known yet" : "this provider does not federate");
}

async function look() {
  try {
    const [metrics, ready, known] = await Promise.all(["/metrics", "/readyz", "/v1/peers"].map((path) => fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) })));
    const text = await metrics.text();
    samples.push({ at: performance.now(), metrics: parse(text) });
    while (samples.length > 2 && newest().at - samples[1].at > WINDOW_MS) samples.shift();
    $("health").textContent = (await ready.text()).trim();
    $("health").className = `health ${ready.ok ? "good" : "bad"}`;
    const now = newest().metrics;
    const [build] = now.get("mimid_build_info") || [{ labels: {} }];
    const up = Date.now() / 1000 - sum(now, "process_start_time_seconds");
    $("facts").textContent = `version ${build.labels.version}, up for ${time(up)}`;
    cards();
    endpoints();
    refusals();
    peers(await known.json());
  } catch (error) {
    $("health").textContent = `does not answer (${error.message})`;
    $("health").className = "health bad";
  }
  setTimeout(look, EVERY_MS);
}

look();
