// The page of the console: polls api/live, renders with lit-html. Everything shown is a text node: what an app logs is hostile.
import {html, nothing, render, svg} from "./lit-html.js";

const POLL_MS = 1000, IDLE_POLL_MS = 5000, IDLE_AFTER_MS = 60000, MAX_BACKOFF_MS = 10000;
const MAX_REQUESTS = 600, MAX_POINTS = 4000, ROWS = 200, MAX_TEXT = 4000;

const state = {
  live: null, requests: [], points: [], seq: 0, instance: "", earlier: new Set(),
  selected: hashTrace(), trace: null, missing: false, open: null, expanded: new Set(), shown: ROWS,
  paused: false, frozen: null, filter: "", only: "", failures: 0, connected: false, changed: Date.now(), why: false, copied: "",
};

function hashTrace() {
  const found = /^#trace=([0-9a-f]{32})$/.exec(location.hash);
  return found ? found[1] : null;
}

// Control and bidirectional characters would let one text change how others look: they are shown as escapes.
const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
function safe(value) {
  let text = typeof value === "string" ? value : value === null || value === undefined ? "" : JSON.stringify(value);
  if (text.length > MAX_TEXT) text = text.slice(0, MAX_TEXT) + `… (${text.length - MAX_TEXT} more characters)`;
  return text.replace(UNSAFE, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}
const ms = (value) => value === null || value === undefined ? "" : value >= 1000 ? (value / 1000).toFixed(2) + " s" : value >= 10 ? value.toFixed(0) + " ms" : value.toFixed(1) + " ms";
const clock = (at) => new Date(at).toTimeString().slice(0, 8);
const statusClass = (one) => one.failed || one.status >= 500 ? "bad" : one.status >= 400 ? "warn" : "ok";

// --- data ------------------------------------------------------------------------------------------------

async function poll() {
  if (!document.hidden && !state.paused) {
    try {
      const response = await fetch(`api/live?since=${state.seq}&instance=${state.instance}`, {cache: "no-store"});
      if (!response.ok) throw new Error(String(response.status));
      take(await response.json());
      state.failures = 0;
      state.connected = true;
    } catch {
      state.failures += 1;
      state.connected = false;
    }
    draw();
  }
  const idle = Date.now() - state.changed > IDLE_AFTER_MS ? IDLE_POLL_MS : POLL_MS;
  setTimeout(poll, Math.min(MAX_BACKOFF_MS, idle * 2 ** Math.min(state.failures, 4)));
}

function take(live) {
  if (state.instance && live.instance !== state.instance) {
    // The server has restarted: what is on the page stays, marked as earlier.
    for (const one of state.requests) state.earlier.add(key(one));
    state.seq = 0;
  }
  state.instance = live.instance;
  if (live.seq !== state.seq) state.changed = Date.now();
  state.seq = live.seq;
  state.live = live;
  const known = new Set(state.requests.map(key));
  const fresh = live.requests.filter((one) => !known.has(key(one)));
  state.requests = [...fresh, ...state.requests].slice(0, MAX_REQUESTS);
  state.points = [...state.points, ...live.points].filter((p) => p[0] > live.now - 300000).slice(-MAX_POINTS);
  if (state.selected && fresh.some((one) => one.trace_id === state.selected)) load(state.selected);
}

const key = (one) => `${one.trace_id}/${one.span_id}/${one.time}`;

async function load(traceId) {
  try {
    const response = await fetch(`api/traces/${traceId}`, {cache: "no-store"});
    if (traceId !== state.selected) return;
    state.missing = response.status === 404;
    state.trace = response.ok ? await response.json() : state.trace && state.trace.trace_id === traceId ? state.trace : null;
  } catch {
    state.connected = false;
  }
  draw();
}

function select(traceId) {
  if (!traceId) return;
  state.selected = traceId;
  state.trace = null;
  state.missing = false;
  state.open = null;
  state.expanded.clear();
  state.shown = ROWS;
  history.replaceState(null, "", `#trace=${traceId}`);
  load(traceId);
}

addEventListener("hashchange", () => { const found = hashTrace(); if (found && found !== state.selected) select(found); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) draw(); });

// --- filter ----------------------------------------------------------------------------------------------

function matches(one) {
  if (state.only === "failed" && !(one.failed || one.status >= 500)) return false;
  if (state.only === "slow" && !(one.duration_ms >= slowFrom())) return false;
  return state.filter.toLowerCase().split(/\s+/).filter(Boolean).every((word) => {
    const status = /^(?:status)?(>=|<|=)?([1-5]\d\d|[1-5]xx)$/.exec(word);
    if (status) {
      if (status[2].endsWith("xx")) return String(one.status)[0] === status[2][0];
      const wanted = Number(status[2]);
      return status[1] === ">=" ? one.status >= wanted : status[1] === "<" ? one.status < wanted : one.status === wanted;
    }
    const longer = /^>(\d+)ms$/.exec(word);
    if (longer) return one.duration_ms > Number(longer[1]);
    return `${one.method} ${one.path} ${one.endpoint} ${one.trace_id} ${one.request_id} ${one.error || ""} ${one.kind}`.toLowerCase().includes(word);
  });
}

function slowFrom() {
  return state.live ? Math.max(state.live.tiles.p95_ms, 1) : 1;
}

// --- page ------------------------------------------------------------------------------------------------

function page() {
  const live = state.live;
  if (!live) return html`<main><p class="empty">${state.failures ? "The server does not answer; trying again." : "Loading…"}</p></main>`;
  return html`
    ${head(live)}
    <main>
      <section class="panel verdict ${live.verdict.state}" aria-label="Verdict">
        <span aria-live="polite">${safe(live.verdict.text)}</span>
        ${live.verdict.reasons.length ? html`<button @click=${() => { state.why = !state.why; draw(); }} aria-expanded=${state.why}>why this state?</button>
          ${state.why ? html`<ul>${live.verdict.reasons.map((reason) => html`<li>${safe(reason)}</li>`)}</ul>` : nothing}` : nothing}
      </section>
      ${pair(live)}
      ${problems(live)}
      ${routes(live)}
      ${tiles(live)}
      ${scatter(live)}
      ${about()}
    </main>
    ${foot(live)}`;
}

function head(live) {
  const service = live.service;
  return html`<header>
    <h1>${safe(service.name)}</h1>
    <span class="dim">${safe(service.environment)} · process ${service.pid}${service.workers > 1 ? ` of ${service.workers} workers: this page shows one of them` : ""} · up ${Math.floor(service.up / 60)} min</span>
    <span class="grow"></span>
    <span class="live ${state.connected ? "ok" : "bad"}" role="status">${state.paused ? "paused" : state.connected ? "live" : "not connected"}</span>
    <button @click=${() => { state.paused = !state.paused; draw(); }} aria-pressed=${state.paused}>Pause</button>
    <button @click=${theme} aria-label="Switch between light and dark">Theme</button>
  </header>`;
}

function pair(live) {
  // A list must not move under the pointer or the focus: it shows what was there when they came, and counts the rest.
  const held = state.frozen || state.requests, list = held.filter(matches), fresh = state.requests.length - held.length;
  return html`<div class="pair">
    <section aria-label="Requests">
      <h2>Requests</h2>
      <p><label>Filter <input id="filter" type="search" .value=${state.filter} placeholder="route, text, 5xx, >100ms, trace id"
        @input=${(event) => { state.filter = event.target.value; draw(); }}></label>
        ${["failed", "slow"].map((name) => html`<button aria-pressed=${state.only === name} @click=${() => { state.only = state.only === name ? "" : name; draw(); }}>${name}</button>`)}</p>
      <div class="panel scroll" tabindex="0" role="region" aria-label="List of requests" @mouseenter=${freeze} @mouseleave=${thaw} @focusin=${freeze} @focusout=${thaw}>
        ${fresh > 0 ? html`<button @click=${thaw}>${fresh} new</button>` : nothing}
        <ul class="requests">
          ${live.running.map((one) => html`<li><button @click=${() => select(one.trace_id)} aria-current=${one.trace_id === state.selected}>
            <span class="dim">${clock(one.time)}</span><span class="path">${safe(one.method)} ${safe(one.path)}</span><span class="dim">…</span><span class="num dim">${ms(live.now - one.time)}</span></button></li>`)}
          ${list.slice(0, ROWS).map((one) => html`<li><button class=${state.earlier.has(key(one)) ? "old" : ""} @click=${() => select(one.trace_id)} aria-current=${one.trace_id === state.selected} title=${safe(one.endpoint)}>
            <span class="dim">${clock(one.time)}</span><span class="path">${safe(one.method || one.kind)} ${safe(one.path)}${state.earlier.has(key(one)) ? " (before restart)" : ""}</span>
            <span class=${statusClass(one)}>${one.status || (one.failed ? "failed" : "ok")}</span><span class="num">${ms(one.duration_ms)}</span></button></li>`)}
        </ul>
        ${list.length ? nothing : html`<p class="dim">${state.requests.length ? "No request matches the filter." : html`No request yet. Send one: <code>curl ${location.origin}/</code>`}</p>`}
      </div>
    </section>
    <section aria-label="Trace">
      <h2>Trace ${state.selected ? html`<code>${state.selected.slice(0, 8)}</code>` : nothing}</h2>
      <div class="panel scroll" tabindex="0" role="region" aria-label="Chosen trace">${trace()}</div>
    </section>
  </div>`;
}

function freeze() { if (!state.frozen) state.frozen = state.requests; }
function thaw() { state.frozen = null; draw(); }

function trace() {
  if (!state.selected) return html`<p class="dim">Choose a request to see where its time went. Keys: <kbd>j</kbd> and <kbd>k</kbd> move, <kbd>/</kbd> filters, <kbd>p</kbd> pauses.</p>`;
  if (!state.trace) return html`<p class="dim">${state.missing ? "This trace is not held: the server has restarted, or newer traces have replaced it." : "Loading…"}</p>`;
  const one = state.trace.summaries[0], rows = waterfall(state.trace);
  const start = Math.min(...rows.map((row) => row.span.start)), end = Math.max(...rows.map((row) => row.span.end));
  return html`
    ${one ? html`<p><b>${safe(one.method || one.kind)} ${safe(one.path)}</b> <span class=${statusClass(one)}>${one.status || one.outcome}</span> ${ms(one.duration_ms)}
      ${one.db_count ? html` · database ${ms(one.db_ms)} in ${one.db_count}` : nothing}${one.external_count ? html` · other services ${ms(one.external_ms)} in ${one.external_count}` : nothing}
      ${one.self_ms !== undefined ? html` · self ${ms(one.self_ms)}` : nothing}
      ${Object.entries(one.fields || {}).map(([name, value]) => html` · ${safe(name)} <b>${safe(String(value))}</b>`)}</p>` : nothing}
    <p>
      <button @click=${() => copy(JSON.stringify(state.trace, null, 1), "trace")}>${state.copied === "trace" ? "copied" : "Copy as JSON"}</button>
      <button @click=${() => copy(location.href, "link")}>${state.copied === "link" ? "copied" : "Copy link"}</button>
      <a href="api/traces/${state.selected}.otlp.json" download>OTLP</a>
      <code class="dim">${state.selected}</code></p>
    ${state.trace.summaries.filter((each) => each.exception).map((each) => exception(each.exception))}
    <div role="list" aria-label="Spans">${rows.slice(0, state.shown).map((row) => html`<div role="listitem">${span(row, start, end)}</div>`)}</div>
    ${rows.length > state.shown ? html`<button @click=${() => { state.shown += 300; draw(); }}>Show ${Math.min(300, rows.length - state.shown)} more</button>` : nothing}
    ${rows.length ? nothing : html`<p class="dim">No spans are held for this trace.</p>`}
    ${state.trace.dropped_spans ? html`<p class="warn">${state.trace.dropped_spans} more spans were not kept.</p>` : nothing}
    ${state.trace.lines.length ? html`<h3>Log lines</h3>${state.trace.lines.map((line) => logline(line, start))}` : nothing}`;
}

// Depth first; consecutive siblings of one name are folded into one row.
function waterfall(found) {
  const children = new Map(), ids = new Set(found.spans.map((span) => span.span_id)), rows = [];
  for (const span of found.spans) {
    const parent = ids.has(span.parent_id) ? span.parent_id : "";
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(span);
  }
  const walk = (parent, depth) => {
    const list = children.get(parent) || [];
    for (let at = 0; at < list.length;) {
      let last = at;
      while (last + 1 < list.length && list[last + 1].name === list[at].name && !children.has(list[last].span_id) && !children.has(list[last + 1].span_id)) last += 1;
      const count = last - at + 1, first = list[at];
      const group = `${parent}/${first.name}`;
      if (count >= 3 && !state.expanded.has(group)) {
        rows.push({span: {...first, end: Math.max(...list.slice(at, last + 1).map((span) => span.end))}, depth, count, group, failed: list.slice(at, last + 1).some((span) => span.status === "ERROR")});
        at = last + 1;
        continue;
      }
      rows.push({span: first, depth, count: 1, failed: first.status === "ERROR"});
      if (depth < 100) walk(first.span_id, depth + 1);
      at += 1;
    }
  };
  walk("", 0);
  return rows;
}

function span(row, start, end) {
  const one = row.span, whole = Math.max(1, end - start), left = (one.start - start) / whole * 1000, width = Math.max(2, (one.end - one.start) / whole * 1000);
  const kind = row.failed ? "error" : one.attributes["db.system.name"] ? "db" : one.kind === "CLIENT" ? "ext" : "self";
  const open = state.open === one.span_id;
  return html`<button class="fall" aria-expanded=${open} @click=${() => { if (row.count > 1) state.expanded.add(row.group); else state.open = open ? null : one.span_id; draw(); }}>
      <span class="name d${Math.min(row.depth, 8)} ${row.failed ? "bad" : ""}">${row.failed ? "✕ " : ""}${safe(one.name)}${row.count > 1 ? ` ×${row.count}` : ""}</span>
      <svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">${svg`<rect class=${kind} x=${left} y="1" width=${width} height="8"></rect>`}</svg>
      <span class="num">${ms((one.end - one.start) / 1e6)}</span></button>
    ${open ? details(one) : nothing}`;
}

function details(one) {
  const place = one.attributes["code.file.path"] ? `${one.attributes["code.file.path"]}:${one.attributes["code.line.number"]}` : "";
  return html`<div class="panel">
    ${one.attributes["db.query.text"] ? html`<pre>${safe(one.attributes["db.query.text"])}</pre>` : nothing}
    ${place ? html`<p>from <code>${safe(place)}</code></p>` : nothing}
    <table><tbody>${Object.entries(one.attributes).map(([name, value]) => html`<tr><th scope="row" class="mono">${safe(name)}</th><td class="text mono">${safe(value)}</td></tr>`)}</tbody></table>
    ${one.events.map(([at, name, held]) => html`<h3>${safe(name)} <span class="dim">+${ms((at - one.start) / 1e6)}</span></h3><pre>${safe(held["exception.stacktrace"] || held)}</pre>`)}
  </div>`;
}

function exception(chain) {
  return html`${chain.map((one, at) => html`<div class="panel">
    <p class="bad"><b>${at ? "caused by " : ""}${safe(one.type)}</b>: ${safe(one.message)}</p>
    <ul class="frames">${frames(one.frames)}</ul></div>`)}`;
}

function frames(list) {
  const items = [];
  for (let at = 0; at < list.length;) {
    if (list[at].own) {
      const one = list[at];
      items.push(html`<li class="own"><code>${safe(one.file)}:${one.line}</code> in ${safe(one.function)}<pre>${safe(one.code)}</pre></li>`);
      at += 1;
      continue;
    }
    let end = at;
    while (end < list.length && !list[end].own) end += 1;
    const folded = list.slice(at, end);
    items.push(html`<li><details><summary class="dim">${folded.length} frames of libraries</summary><ul class="frames">${folded.map((one) => html`<li class="dim"><code>${safe(one.file)}:${one.line}</code> in ${safe(one.function)}</li>`)}</ul></details></li>`);
    at = end;
  }
  return items;
}

function logline(line, start) {
  const offset = Number.isFinite(start) && line.timestamp ? new Date(line.timestamp).getTime() - start / 1e6 : null;
  const level = String(line.level || "");
  const fields = line.fields && Object.keys(line.fields).length ? line.fields : null;
  return html`<div class="logline mono"><span class="dim">${offset === null ? "" : `${offset >= 0 ? "+" : ""}${offset.toFixed(0)} ms`}</span>
    <span class=${level === "error" || level === "fatal" ? "bad" : level === "warn" ? "warn" : "dim"}>${safe(level)}</span>
    <span class="message">${safe(line.message)}${fields ? html` <span class="dim">${Object.entries(fields).map(([name, value]) => `${safe(name)}=${safe(value)}`).join(" ")}</span>` : nothing}</span></div>`;
}

function problems(live) {
  return html`<section aria-label="What to fix"><h2>What to fix</h2><div class="panel">
    ${live.problems.length ? html`<ul class="fix">${live.problems.map((one) => html`<li><b>${safe(one.title)}</b>${one.times > 1 ? html` <span class="dim">×${one.times}</span>` : nothing} — ${safe(one.detail)}
      ${one.trace_id ? html`<button @click=${() => select(one.trace_id)}>evidence</button>` : nothing}</li>`)}</ul>` : html`<p class="dim">Nothing found.</p>`}
  </div></section>`;
}

function routes(live) {
  return html`<section aria-label="Routes"><h2>Routes by total time</h2><div class="panel scroll" tabindex="0" role="region" aria-label="Table of routes"><table>
    <thead><tr><th scope="col">route</th><th scope="col" class="num">requests</th><th scope="col" class="num">failed</th><th scope="col" class="num wide">p50</th><th scope="col" class="num">p95</th><th scope="col" class="wide">where the time goes</th></tr></thead>
    <tbody>${live.routes.map((row) => html`<tr><td class="text"><button @click=${() => select(row.trace_id)} title="Open the slowest request">${safe(row.method)} ${safe(row.endpoint)}</button></td>
      <td class="num">${row.requests}</td><td class="num ${row.failed ? "bad" : ""}">${row.failed}</td><td class="num wide">${ms(row.p50_ms)}</td><td class="num">${ms(row.p95_ms)}</td><td class="wide">${share(row)}</td></tr>`)}</tbody>
  </table><p class="legend dim"><span><i class="swatch db"></i>database</span><span><i class="swatch ext"></i>other services</span><span><i class="swatch self"></i>self</span></p></div></section>`;
}

function share(row) {
  const whole = Math.max(row.total_ms, 0.001), db = row.database_ms / whole * 1000, ext = row.external_ms / whole * 1000;
  return html`<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label=${`database ${Math.round(db / 10)}%, other services ${Math.round(ext / 10)}%`}>
    ${svg`<rect class="db" x="0" y="1" width=${db} height="8"></rect><rect class="ext" x=${db} y="1" width=${ext} height="8"></rect><rect class="self" x=${db + ext} y="1" width=${Math.max(0, 1000 - db - ext)} height="8"></rect>`}</svg>`;
}

function tiles(live) {
  const t = live.tiles;
  return html`<section aria-label="Figures of the last five minutes"><h2>Last five minutes</h2><div class="tiles">
    <div class="panel">Traffic <b>${t.rate}/s</b><span class="dim">${t.requests} requests</span></div>
    <div class="panel">Errors <b class=${t.failed ? "bad" : ""}>${t.requests ? (t.failed / t.requests * 100).toFixed(1) : "0.0"}%</b><span class="dim">${t.failed} failed, ${t.client_errors} were 4xx</span></div>
    <div class="panel">Latency p95 <b>${ms(t.p95_ms)}</b><span class="dim">p50 ${ms(t.p50_ms)}, p99 ${ms(t.p99_ms)}</span></div>
    <div class="panel">In progress <b>${t.in_progress}</b><span class="dim">event loop lag ${ms(t.loop_lag_ms)}</span></div>
    ${t.budgets.map((one) => html`<div class="panel">Budget ${safe(one.name)} <b>${(one.remaining * 100).toFixed(1)}%</b><span class="dim">burn ${Object.entries(one.burn_rates).map(([name, rate]) => `${name} ${rate.toFixed(1)}×`).join(", ")}</span></div>`)}
  </div></section>`;
}

function scatter(live) {
  const from = live.now - 300000, height = (value) => 150 - Math.min(1, Math.max(0, Math.log10(Math.max(value, 0.1) / 0.1) / 5)) * 140;
  return html`<section aria-label="Every request"><h2>Every request <span class="dim">by duration, last five minutes</span></h2><div class="panel">
    <svg class="scatter" viewBox="0 0 1000 160" preserveAspectRatio="none" role="img" aria-label=${`${state.points.length} requests by duration`} @click=${(event) => { const id = event.target.dataset && event.target.dataset.trace; if (id) select(id); }}>
      ${[1, 10, 100, 1000].map((at) => svg`<line x1="0" x2="1000" y1=${height(at)} y2=${height(at)}></line>`)}
      ${state.points.slice(-1500).map((p) => svg`<circle class=${p[2] >= 500 ? "c5" : p[2] >= 400 ? "c4" : ""} data-trace=${p[3]} cx=${(p[0] - from) / 300} cy=${height(p[1])} r="3"></circle>`)}
    </svg><p class="dim">Lines at 1, 10, 100 and 1,000 ms. Click a dot to open its trace.</p></div></section>`;
}

function foot(live) {
  return html`<footer class="dim">${live.exports.map((one) => html`<span>${safe(one.signal)}: ${one.exported} sent, ${one.dropped} dropped. </span>`)}
    ${live.held.traces} traces and ${(live.held.bytes / 1048576).toFixed(1)} of 16 MB held. Nothing leaves this machine by this page. <a href="api/summary.txt">As text</a></footer>`;
}

// --- keys, theme, clipboard ------------------------------------------------------------------------------

function about() {
  const load = async (event) => {
    if (!event.target.open) return;
    const response = await fetch("api/info", {cache: "no-store"});
    if (response.ok) { state.about = await response.json(); draw(); }
  };
  return html`<section class="panel" aria-label="About"><details @toggle=${load}><summary>About this app</summary>${state.about ? html`
    <table><thead><tr><th scope="col">verdict</th><th scope="col">subject</th><th scope="col">found</th></tr></thead><tbody>
    ${state.about.checks.map((check) => html`<tr><td>${check.verdict}</td><td>${safe(check.subject)}</td>
      <td>${safe(check.found)}${check.verdict !== "ok" && check.step ? html`<br><small>Next: ${safe(check.step)}</small>` : nothing}</td></tr>`)}
    </tbody></table>` : nothing}</details></section>`;
}

function theme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); state.copied = what; } catch { state.copied = ""; }
  draw();
  setTimeout(() => { state.copied = ""; draw(); }, 1500);
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "Escape" && typing) { event.target.blur(); return; }
  if (typing) return;
  const list = state.requests.filter(matches), at = list.findIndex((one) => one.trace_id === state.selected);
  if (event.key === "j" && list.length) select(list[Math.min(list.length - 1, at + 1)].trace_id);
  else if (event.key === "k" && list.length) select(list[Math.max(0, at - 1)].trace_id);
  else if (event.key === "/") { event.preventDefault(); document.getElementById("filter").focus(); }
  else if (event.key === "p") { state.paused = !state.paused; draw(); }
});

function draw() {
  const title = state.live ? `${safe(state.live.service.name)}: ${state.live.verdict.state}` : "Console";
  if (document.title !== title) document.title = title;
  render(page(), document.getElementById("app"));
}

if (state.selected) load(state.selected);
poll();
