// The live page: totals, refusals and events of this smtpguard.
// What a peer may have said becomes text, never HTML; the server's policy lets the browser refuse anything else.

const MAX_ROWS = 200;
const TOTALS_MS = 2000;
const ANSWER_MS = 5000;
const AGAIN_MS = [1000, 2000, 5000];

const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat();

let socket = null; // the WebSocket that counts; others are leaving
let attempt = 0; // since the feed was last alive
let timer = 0; // of the next attempt, or of the next totals
let pending = []; // events to show, newest last
let isPaused = false;
let isAnew = false; // what is shown is of an earlier connection, and goes with the next rows
let isFrameAsked = false;

// -- elements

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function show(id, isShown) {
  byId(id).hidden = !isShown;
}

function clock(date) {
  return date.toLocaleTimeString([], { hourCycle: "h23" });
}

function timeOf(stamp) {
  const time = make("time", "", clock(new Date(stamp)));
  time.dateTime = stamp;
  time.title = stamp;
  return time;
}

// -- asking

class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
  const body = await answer.json();
  if (!answer.ok) throw new Refusal(answer.status, body.error || "");
  return body;
}

function protocols() {
  const token = sessionStorage.getItem("token");
  if (!token) return ["smtpguard.events"];
  // A WebSocket can be given no header field but this one, and in it neither "/" nor "=".
  const encoded = btoa(token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return ["smtpguard.events", `smtpguard.bearer.${encoded}`];
}

function query() {
  const chosen = new URLSearchParams();
  for (const [name, value] of new FormData(byId("filters"))) if (value.trim()) chosen.set(name, value.trim());
  return chosen;
}

// -- the connection

async function connect() {
  clearTimeout(timer);
  leave();
  if (byId("state").dataset.state === "waiting") setState("waiting", "Connecting");
  try {
    await refresh();
  } catch (error) {
    failed(error);
    return;
  }
  const filters = query();
  const asked = filters.toString();
  filters.set("recent", MAX_ROWS);
  const address = new URL(`events?${filters}`, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const mine = new WebSocket(address, protocols());
  let isOpen = false;
  socket = mine;
  mine.onopen = () => {
    if (socket !== mine) return;
    isOpen = true;
    attempt = 0;
    pending = [];
    isAnew = true;
    byId("filter-wrong").textContent = "";
    show("lost", false);
    tellState();
    askFrame();
    timer = setTimeout(keepFresh, TOTALS_MS, mine);
  };
  mine.onmessage = (message) => {
    if (socket !== mine) return;
    for (const line of message.data.split("\n")) if (line) pending.push(JSON.parse(line));
    pending.splice(0, pending.length - MAX_ROWS);
    askFrame();
  };
  mine.onclose = async (closed) => {
    if (socket !== mine) return;
    socket = null;
    if (isOpen) {
      lost(closed.reason || "The connection broke.");
      return;
    }
    try {
      await ask(`events?${asked}`); // the browser does not say why it was refused; this does
    } catch (error) {
      if (!socket) failed(error);
    }
  };
}

function leave() {
  const leaving = socket;
  socket = null;
  if (leaving) leaving.close(1000);
}

function failed(error) {
  leave();
  if (error instanceof Refusal && error.status === 401) {
    if (sessionStorage.getItem("token")) byId("token-why").textContent = "This token is not the right one.";
    sessionStorage.removeItem("token");
    show("lost", false);
    show("token-form", true);
    setState("lost", "Token needed");
    byId("token").focus();
  } else if (error instanceof Refusal && error.status === 400) {
    byId("filter-wrong").textContent = error.message;
    setState("lost", "Filter not understood");
  } else if (error instanceof Refusal && error.message && error.status !== 426) {
    lost(`smtpguard says: ${error.message}.`);
  } else {
    lost("smtpguard does not answer.");
  }
}

function lost(why) {
  clearTimeout(timer);
  leave();
  if (byId("state").dataset.state !== "lost" || byId("lost").hidden) {
    byId("lost-since").textContent = `What you see below is as of ${clock(new Date())}; this page keeps trying.`;
  }
  byId("lost-why").textContent = why.endsWith(".") ? why : `${why}.`;
  show("lost", true);
  setState("lost", "Feed lost");
  timer = setTimeout(connect, AGAIN_MS[Math.min(attempt, AGAIN_MS.length - 1)]);
  attempt += 1;
}

async function keepFresh(mine) {
  try {
    await refresh();
  } catch (error) {
    if (socket === mine) failed(error);
    return;
  }
  if (socket === mine) timer = setTimeout(keepFresh, TOTALS_MS, mine);
}

// -- what is said of the state

function setState(state, text) {
  const shown = byId("state");
  if (shown.dataset.state === state && shown.textContent === text) return;
  shown.dataset.state = state;
  shown.textContent = text;
}

function tellState() {
  if (!socket) return;
  if (isPaused) setState("paused", "Paused");
  else setState("live", "Live");
}

function setPaused(isSo) {
  isPaused = isSo;
  byId("pause").setAttribute("aria-pressed", String(isPaused));
  tellState();
}

// -- totals and status

async function refresh() {
  const [status, totals] = await Promise.all([ask("api/status"), ask("api/totals")]);
  show("token-form", false);
  const since = new Date(totals.since).toLocaleString([], { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });
  setText(byId("about"), `version ${status.version} · ${number.format(status.sessions)} ${status.sessions === 1 ? "session" : "sessions"} open · counting since ${since}`);
  tellTrouble(status);
  tellNumbers("outbound", totals.outbound);
  tellNumbers("inbound", totals.inbound);
  tellShare("outbound-tls", totals.outbound.over_tls, totals.outbound.delivered);
  tellShare("outbound-auth", totals.outbound.authenticated, totals.outbound.delivered);
  tellShare("inbound-tls", totals.inbound.over_tls, totals.inbound.delivered);
  tellRefusals(totals.refusals);
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function tellTrouble(status) {
  const troubles = status.draining ? ["It is about to end: sessions drain."] : status.ready ? [] : ["It is not ready."];
  troubles.push(...status.degraded);
  show("trouble", troubles.length > 0);
  if (byId("trouble-list").textContent === troubles.join("")) return;
  byId("trouble-list").replaceChildren(...troubles.map((text) => make("li", "", text)));
}

const NUMBERS = [["delivered", "delivered"], ["deferred", "deferred"], ["refused", "refused"], ["lost", "reply lost"]];

function tellNumbers(id, totals) {
  const list = byId(id);
  for (const [key, name] of list.children.length ? [] : NUMBERS) {
    const group = make("div");
    group.dataset.key = key;
    group.append(make("dt", "", name), make("dd"));
    list.append(group);
  }
  for (const group of list.children) setText(group.lastChild, number.format(totals[group.dataset.key]));
}

function tellShare(id, part, whole) {
  const share = byId(id);
  // Rounded down: 100 % is said of all only.
  const percent = whole ? Math.floor((part / whole) * 1000) / 10 : 0;
  const text = whole ? `${number.format(percent)} % (${number.format(part)} of ${number.format(whole)})` : "no mail yet";
  setText(share.querySelector(".value"), text);
  share.querySelector(".bar span").style.width = `${percent}%`;
}

const rows = new Map(); // of refusals, by direction and reason: an open one stays open

function tellRefusals(refusals) {
  show("no-refusals", refusals.length === 0);
  const order = refusals.map((refusal) => {
    const key = `${refusal.direction} ${refusal.reason}`;
    if (!rows.has(key)) rows.set(key, refusalRow(refusal));
    const row = rows.get(key);
    setText(row.querySelector(".count"), `${number.format(refusal.count)} ×`);
    const latest = clock(new Date(refusal.last));
    setText(row.querySelector(".latest"), `latest ${refusal.last_domain || "unknown"}, ${latest}`);
    return row;
  });
  const list = byId("refusals");
  if (order.some((row, place) => list.children[place] !== row) || list.children.length !== order.length) {
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    list.replaceChildren(...order);
    if (focused) focused.focus();
  }
}

function refusalRow(refusal) {
  const row = make("li");
  const text = refusal.text || refusal.reason;
  row.append(make("span", "count"), make("span", "way", refusal.direction));
  const token = make("code", "", refusal.reason);
  if (refusal.advice) {
    const more = make("details", "reason");
    const head = make("summary", "", `${text} `);
    head.append(token);
    more.append(head, make("p", "", refusal.advice));
    row.append(more);
  } else {
    const plain = make("span", "reason", `${text} `);
    plain.append(token);
    row.append(plain);
  }
  row.append(make("span", "latest"));
  return row;
}

// -- events

function askFrame() {
  if (isPaused) {
    tellRows();
  } else if (!isFrameAsked) {
    isFrameAsked = true;
    requestAnimationFrame(flush);
  }
}

function flush() {
  isFrameAsked = false;
  if (isPaused) return;
  const list = byId("events");
  if (isAnew) list.replaceChildren();
  isAnew = false;
  const news = pending.reverse().map(eventRow);
  pending = [];
  list.prepend(...news);
  while (list.children.length > MAX_ROWS) list.lastChild.remove();
  tellRows();
}

function tellRows() {
  const shown = byId("events").children.length;
  show("no-events", shown === 0);
  setText(byId("shown"), shown ? `the latest ${number.format(shown)}` : "");
  const waiting = pending.length === MAX_ROWS ? `${MAX_ROWS} or more` : number.format(pending.length);
  setText(byId("pause"), isPaused ? (pending.length ? `Resume (${waiting} new)` : "Resume") : "Pause");
}

function eventRow(event) {
  const row = make("li");
  const word = event.outcome || event.event.replaceAll("_", " ");
  row.append(
    timeOf(event.ts),
    make("span", "way", event.direction || "process"),
    make("span", `what ${event.outcome || event.level}`, word),
    make("span", "domain", event.domain || event.sender_domain || ""),
    facts(event),
  );
  return row;
}

const AUTHENTICATED = {
  dane: "authenticated by DANE",
  "host-only": "the host authenticated by DANE",
  pkix: "authenticated by its certificate",
  fingerprint: "authenticated by its fingerprint",
};

function sentence(event) {
  const host = event.mx && event.address ? `${event.mx} [${event.address}]` : event.mx || event.address;
  const tls = event.tls_version ? `TLS ${event.tls_version}` : "in clear";
  switch (event.event) {
    case "delivered":
      return [host, tls, AUTHENTICATED[event.auth] || (event.tls_version ? "not authenticated" : "")];
    case "delivery_refused":
      return [event.reply];
    case "message_relayed":
      return [event.client, tls, event.reply];
    case "host_opened":
      return [host, tls];
    case "host_skipped":
      return [host, event.tls_version && tls, event.reason, event.detail];
    case "policy_observed":
      return [`${event.kind} would ${event.would}`, host, event.reason];
  }
  return [event.stage, event.state, event.kind, event.sts_event && `MTA-STS policy ${event.sts_event}`, event.listener, event.address, event.detail];
}

const SHOWN = new Set(["ts", "level", "event", "direction", "outcome"]);

function facts(event) {
  const more = make("details");
  const list = make("dl");
  more.append(make("summary", "", sentence(event).filter(Boolean).join(" · ") || "details"));
  // Made when it is looked at: most never are.
  more.addEventListener(
    "toggle",
    () => {
      for (const [key, value] of Object.entries(event)) {
        if (SHOWN.has(key)) continue;
        list.append(make("dt", "", key.replaceAll("_", " ")));
        list.append(make("dd", "", Array.isArray(value) ? value.join("; ") : String(value)));
      }
      if (event.id) {
        list.append(make("dt", "", "explained by"), make("dd"));
        list.lastChild.append(make("code", "", `smtpguard explain ${event.id}`));
      }
      more.append(list);
    },
    { once: true },
  );
  return more;
}

// -- what the reader does

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("change", () => {
  setPaused(false);
  const chosen = query().toString();
  history.replaceState(null, "", chosen ? `?${chosen}` : location.pathname);
  connect();
});
byId("pause").addEventListener("click", () => {
  setPaused(!isPaused);
  if (!isPaused) flush();
  tellRows();
});
byId("clear").addEventListener("click", () => {
  pending = [];
  byId("events").replaceChildren();
  tellRows();
});
byId("again").addEventListener("click", connect);
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  byId("token").value = "";
  connect();
});

for (const [name, value] of new URLSearchParams(location.search)) {
  const field = byId("filters").elements.namedItem(name);
  if (field) field.value = value;
}
connect();
