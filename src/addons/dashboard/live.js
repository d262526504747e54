"use strict";
// Fetches the page anew whenever the server says that something on it changed; one fetch at a time.
const namespace = document.getElementById("namespace");
namespace?.addEventListener("change", () => namespace.form.submit());

const main = document.querySelector("main[data-stream]");
if (main) {
  let busy = false, again = false;
  const refresh = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("main");
      if (fresh && getSelection().isCollapsed) main.replaceChildren(...fresh.childNodes);
    } finally {
      busy = false;
      if (again) { again = false; refresh(); }
    }
  };
  new EventSource(main.dataset.stream).addEventListener("message", refresh);
}
