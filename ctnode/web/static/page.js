// Keeps the open page current, moves focus by keyboard, sends uploads. Nothing here is needed to read or to act.
"use strict";

const LEAST_MS = 1000;
const pulse = document.getElementById("pulse");

// ------------------------------------------------------------------------------------------------ live regions

function same(one, other) {
  return one.isEqualNode(other);
}

// Rows with a key stay the same element, so that focus, selection and open details survive.
function morph(now, fresh) {
  if (same(now, fresh)) return;
  const held = now.contains(document.activeElement) ? document.activeElement : null;
  if (held && held.matches("input:not([type=hidden])") && held.value) return;
  const body = now.querySelector("tbody, ul, ol, .gallery");
  const next = fresh.querySelector("tbody, ul, ol, .gallery");
  const keyed = body && next && body.querySelector(":scope > [data-key]") && next.querySelector(":scope > [data-key]");
  if (!keyed || now.querySelectorAll("tbody, ul, ol, .gallery").length !== 1 ||
      fresh.querySelectorAll("tbody, ul, ol, .gallery").length !== 1) {
    const open = [...now.querySelectorAll("details")].map((one) => one.open);
    const place = held ? [...now.querySelectorAll("a, button")].indexOf(held) : -1;
    now.replaceChildren(...fresh.childNodes);
    now.querySelectorAll("details").forEach((one, index) => { one.open = one.open || Boolean(open[index]); });
    if (place >= 0) now.querySelectorAll("a, button")[place]?.focus();
    return;
  }
  const known = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const placed = [...next.children].map((row) => {
    const old = known.get(row.dataset.key);
    if (!old) {
      row.classList.add("fresh");
      return row;
    }
    known.delete(row.dataset.key);
    if (!same(old, row)) {
      const index = held && old.contains(held) ? [...old.querySelectorAll("a, button")].indexOf(held) : -1;
      old.replaceChildren(...row.childNodes);
      if (index >= 0) old.querySelectorAll("a, button")[index]?.focus();
    }
    old.classList.remove("fresh");
    return old;
  });
  for (const gone of known.values()) gone.remove();
  placed.forEach((row, index) => {
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
  });
  // What stands around the rows, such as a heading or the link to the next page, changes seldom.
  const rest = (root, rows) => [...root.children].filter((one) => !one.contains(rows));
  const before = rest(now, body);
  const after = rest(fresh, next);
  if (before.length === after.length && before.every((one, index) => same(one, after[index]))) return;
  next.replaceWith(body);
  now.replaceChildren(...fresh.childNodes);
  if (held && held.isConnected) held.focus();
}

let wanted = false;
let busy = false;
let last = 0;

async function refresh() {
  wanted = true;
  if (busy || document.hidden) return;
  busy = true;
  try {
    while (wanted && !document.hidden) {
      const wait = last + LEAST_MS - Date.now();
      if (wait > 0) await new Promise((done) => setTimeout(done, wait));
      wanted = false;
      last = Date.now();
      const answer = await fetch(location.href, { headers: { "x-live": "1" }, redirect: "manual" });
      if (!answer.ok) continue;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const region of document.querySelectorAll("[data-live]")) {
        const fresh = page.querySelector(`[data-live="${CSS.escape(region.dataset.live)}"]`);
        if (fresh) morph(region, fresh);
      }
    }
  } catch {
    say(false);
  } finally {
    busy = false;
  }
}

function say(isLive) {
  if (!pulse) return;
  pulse.classList.toggle("on", isLive);
  pulse.querySelector("use").setAttribute("href", isLive ? "#i-check" : "#i-dashed");
  pulse.querySelector("span").textContent = isLive ? "live" : "not live";
}

if (pulse && document.querySelector("[data-live]")) {
  let source = null;
  const listen = () => {
    source = new EventSource("/events");
    source.addEventListener("open", () => say(true));
    source.addEventListener("error", () => say(false));
    source.addEventListener("changed", refresh);
  };
  listen();
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh();
  });
  // A browser keeps few connections to one server: a page that is left gives its own back.
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
  setInterval(() => { if (!document.hidden) refresh(); }, 15000);
}

// ---------------------------------------------------------------------------------------------------- keyboard

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  } else if (event.key === "j" || event.key === "k") {
    const links = [...document.querySelectorAll("main .rows .main a")];
    const at = links.indexOf(document.activeElement);
    const next = links[event.key === "j" ? at + 1 : Math.max(0, at - 1)];
    if (next) next.focus();
  }
});

// ------------------------------------------------------------------------------------------------------ upload

const form = document.getElementById("upload");
if (form) {
  const list = document.getElementById("uploads");
  const token = document.querySelector("meta[name=csrf]").content;
  const waiting = [];
  let running = 0;

  const send = (file, line) => new Promise((done) => {
    const bar = line.querySelector("progress");
    const words = line.querySelector("span");
    const call = new XMLHttpRequest();
    call.open("POST", "/api/v1/upload");
    call.setRequestHeader("x-csrf-token", token);
    call.setRequestHeader("content-type", "application/octet-stream");
    call.upload.addEventListener("progress", (event) => {
      bar.value = event.total ? event.loaded / event.total : 0;
      if (event.loaded === event.total) words.textContent = "reading";
    });
    call.addEventListener("loadend", () => {
      bar.remove();
      let answer = {};
      try { answer = JSON.parse(call.responseText); } catch { answer = {}; }
      if (call.status === 200) {
        const reasons = answer.reasons.length ? `; ${answer.reasons.slice(0, 3).join("; ")}` : "";
        words.textContent = `${answer.imported} taken${reasons}`;
      } else {
        words.textContent = answer.error || "the node does not answer";
      }
      done();
    });
    call.send(file);
  });

  const turn = async () => {
    while (running < 2 && waiting.length) {
      running += 1;
      const [file, line] = waiting.shift();
      send(file, line).then(() => { running -= 1; turn(); });
    }
  };

  const take = (files) => {
    for (const file of files) {
      const line = document.createElement("li");
      const name = document.createElement("b");
      name.textContent = file.name;
      const words = document.createElement("span");
      words.className = "fine";
      words.textContent = "waiting";
      const bar = document.createElement("progress");
      bar.value = 0;
      line.append(name, bar, words);
      list.prepend(line);
      waiting.push([file, line]);
    }
    turn();
  };

  form.addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    take(event.dataTransfer.files);
  });
}
