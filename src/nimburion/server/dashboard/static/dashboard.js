// The script of the dashboard: live updates by polling, times in the viewer's zone, themes and shortcuts.
// Pages work without it; they are then as old as their load.
(() => {
  "use strict";
  const RETRY = 3000; // milliseconds until the next attempt after a failure
  const TIMEOUT = 9000;
  const live = document.getElementById("live");
  const banner = document.getElementById("banner");
  const notice = document.getElementById("notice");
  const liveUrl = live?.dataset.live;
  const interval = 1000 * (live?.dataset.poll || 0); // 0: only its values may be missing
  const store = {
    get: (key) => localStorage.getItem(`nimburion.${key}`),
    set: (key, value) => localStorage.setItem(`nimburion.${key}`, value),
  };

  // Times

  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
  const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  const zone = exact.resolvedOptions().timeZone;

  function showTimes(root) {
    const today = new Date().toDateString();
    for (const element of root.querySelectorAll("time[datetime]")) {
      const at = new Date(element.dateTime);
      if (element.title || Number.isNaN(at.getTime())) continue;
      element.title = `${exact.format(at)} (${element.textContent})`;
      element.textContent = at.toDateString() === today ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
    }
  }

  // Live updates

  let timer = 0;
  let polling = false;
  let again = false; // somebody has asked for a poll during a poll
  let behind = false; // a fragment was held back
  let etag = ""; // of the fragment that is shown
  let isMissing = false; // a page that came before its values is of something that does not exist
  const isPaused = () => store.get("paused") === "yes";
  const isPending = () => "pending" in live.dataset; // the page came before its values

  // A fragment must not replace what somebody works with: an open form, a focused field, a selected
  // row or selected text.
  function isInUse() {
    const focused = document.activeElement;
    const selection = document.getSelection();
    return Boolean(
      document.querySelector("#live details.action[open], #live dialog[open], #live input[type=checkbox]:checked") ||
        (live.contains(focused) && focused.matches("input, select, textarea")) ||
        (selection && !selection.isCollapsed && live.contains(selection.anchorNode)),
    );
  }

  function setBehind(isBehind) {
    behind = isBehind;
    document.body.classList.toggle("held", isBehind);
  }

  function showStatus(at, problem) {
    const shown = document.getElementById("as-of");
    const moment = new Date(1000 * at);
    if (at > 0) {
      shown.dateTime = moment.toISOString();
      shown.textContent = clock.format(moment);
    }
    showBanner(problem);
  }

  function showBanner(text) {
    if (!text === banner.hidden && (!text || banner.textContent === text)) return;
    banner.hidden = !text;
    banner.textContent = text || "";
  }

  function explainStatus(status) {
    if (status === 404 && isPending()) return "This does not exist. It may have been deleted.";
    if (status === 404) return "This does not exist any more. The page shows the last values.";
    if (status === 429) return "The server has too many requests. The page shows the last values and retries.";
    if (status < 500) return "You may not see this page any more. Reload it to sign in."; // 0 too: a redirect
    if (status === 503 || status === 504) return "The backend or the server is not available. The page shows the last values and retries.";
    return "The server reports an error. The page shows the last values and retries.";
  }

  function pollAfter(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(pollIfWatched, milliseconds);
  }

  // Nobody sees a hidden tab, and a paused page stays as it is. Both poll at once when that ends.
  function pollIfWatched() {
    if (!document.hidden && !(isPaused() && !isPending())) poll();
  }

  async function poll() {
    if (!liveUrl || isMissing || !(interval || isPending())) return;
    if (polling) {
      again = true; // the one that runs may show what was before a change
      return;
    }
    polling = true;
    clearTimeout(timer);
    const started = performance.now();
    let wait = RETRY;
    try {
      // A redirect leads to a page that signs in: it is no fragment.
      const answer = await fetch(liveUrl, {
        headers: { Accept: "text/html", ...(etag && { "If-None-Match": etag }) }, redirect: "manual", signal: AbortSignal.timeout(TIMEOUT),
      });
      if (answer.ok || answer.status === 304) {
        await showAnswer(answer);
        // A slow server is asked less often. What was held back is shown soon after it may be.
        wait = Math.max(behind ? 1000 : 1000 * Number(answer.headers.get("Poll-After")), 2 * (performance.now() - started));
      } else {
        showBanner(explainStatus(answer.status));
        isMissing = answer.status === 404 && isPending();
        if (isMissing) live.replaceChildren();
      }
    } catch {
      showBanner("The server does not answer. The page shows the last values and retries.");
    } finally {
      polling = false;
      if (again) poll();
      else pollAfter(wait);
      again = false;
    }
  }

  async function showAnswer(answer) {
    const text = await answer.text();
    showStatus(Number(answer.headers.get("As-Of")), decodeURIComponent(answer.headers.get("Problem") || ""));
    const isNew = answer.status !== 304;
    setBehind(isNew && isInUse());
    if (!isNew || behind) return;
    await htmx.swap({ sourceElement: live, target: live, text, swap: "innerMorph" });
    showTimes(live);
    delete live.dataset.pending;
    etag = answer.headers.get("ETag");
  }

  function showPaused() {
    const paused = isPaused();
    const button = document.getElementById("pause");
    button.setAttribute("aria-pressed", String(paused));
    button.title = paused ? "Resume live updates" : "Pause live updates";
    document.body.classList.toggle("paused", paused);
  }

  function setPaused(paused) {
    store.set("paused", paused ? "yes" : "no");
    showPaused();
    pollIfWatched();
  }

  // What a fragment leaves alone: texts of times that are already shown, and what somebody unfolded.
  htmx.registerExtension("nimburion", {
    htmx_before_morph_node: (element, { oldNode, newNode }) =>
      !(oldNode.nodeName === "TIME" && oldNode.title && oldNode.dateTime === newNode.dateTime),
    htmx_before_morph_attr: (element, { attrName }) => !(attrName === "open" || attrName === "title" && element.nodeName === "TIME"),
  });

  // Forms

  // An answer of a form is a notice. A redirect leads to a page that signs in.
  document.addEventListener("htmx:before:request", (event) => {
    if (event.target.closest?.("form.act")) event.detail.ctx.request.redirect = "manual";
  });
  document.addEventListener("htmx:before:response", (event) => {
    if (event.detail.ctx?.response?.raw?.type !== "opaqueredirect") return;
    event.preventDefault();
    notice.textContent = "Nothing is changed: sign in first. Reload the page to do so.";
  });
  document.addEventListener("htmx:after:request", (event) => {
    const form = event.target.closest?.("form.act");
    if (!form) return;
    if (event.detail.ctx.response?.raw?.ok) {
      if (!("keep" in form.dataset)) form.reset();
      form.closest("details")?.removeAttribute("open");
      document.activeElement?.blur?.();
      for (const box of document.querySelectorAll("#live input[type=checkbox]:checked")) box.checked = false;
      countSelected();
      poll();
    }
  });
  document.addEventListener("htmx:error", (event) => {
    if (event.target.closest?.("form.act")) notice.textContent = "The server does not answer. Nothing is known about the change.";
  });
  // One open form at a time; Escape and a click elsewhere close it.
  document.addEventListener("toggle", (event) => {
    if (event.target.open && event.target.matches?.("details.action")) closeForms(event.target);
  }, true);
  document.addEventListener("click", (event) => {
    if (!event.target.closest("details.action")) closeForms();
  });

  function closeForms(except) {
    for (const form of document.querySelectorAll("details.action[open]")) if (form !== except) form.open = false;
  }

  // Select all rows of a table
  document.addEventListener("change", (event) => {
    if (!event.target.matches?.("input[data-all]")) return;
    for (const box of event.target.closest("table").querySelectorAll("tbody input[type=checkbox]")) box.checked = event.target.checked;
  });

  // The buttons for selected rows say how many, and ask before they delete.
  function countSelected() {
    const count = document.querySelectorAll("#live .select:checked").length;
    for (const form of document.querySelectorAll("form[data-selection]")) {
      form.querySelector("button").disabled = count === 0;
      form.querySelector("button").lastChild.textContent = `${form.dataset.selection}${count ? ` ${count}` : ""}`;
    }
  }
  document.addEventListener("change", countSelected);

  // Copy the text beside a button. Browsers offer the clipboard on HTTPS and on loopback only.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const texts = [...button.parentElement.querySelectorAll("pre")].map((one) => one.textContent);
    const text = texts.join("\n");
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copySelected(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });

  function copySelected(text) {
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }

  // Themes and shortcuts

  function setTheme(theme) {
    store.set("theme", theme);
    document.documentElement.dataset.theme = theme;
    for (const button of document.querySelectorAll("[data-theme-choice]")) {
      button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
    }
  }

  function onKey(event) {
    if (event.key === "Escape") {
      closeForms();
      if (event.target.id === "find") event.target.blur();
    }
    if (event.ctrlKey || event.metaKey || event.altKey || store.get("keys") === "off") return;
    if (event.target.matches("input, select, textarea") || document.querySelector("dialog[open]")) return;
    if (event.key === "/") {
      event.preventDefault();
      document.getElementById("find").select();
    } else if (event.key === "r") poll();
    else if (event.key === "?") document.getElementById("help").showModal();
    else document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`)?.click();
  }

  addEventListener("DOMContentLoaded", () => {
    showTimes(document);
    for (const element of document.querySelectorAll(".zone")) element.textContent = zone;
    setTheme(store.get("theme") || "system");
    for (const button of document.querySelectorAll("[data-theme-choice]")) {
      button.addEventListener("click", () => setTheme(button.dataset.themeChoice));
    }
    const keys = document.getElementById("keys");
    keys.checked = store.get("keys") !== "off";
    keys.addEventListener("change", () => store.set("keys", keys.checked ? "on" : "off"));
    document.getElementById("open-help").addEventListener("click", () => document.getElementById("help").showModal());
    document.getElementById("pause").addEventListener("click", () => setPaused(!isPaused()));
    document.addEventListener("keydown", onKey);
    document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
    showPaused();
    if (liveUrl) {
      document.addEventListener("visibilitychange", pollIfWatched);
      pollAfter(isPending() ? 0 : interval);
    }
  });
})();
