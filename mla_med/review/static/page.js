// Keys of the worklist, textareas as high as their text, and what htmx cannot do by an attribute.
"use strict";
(function () {
  function typing(e) {
    const at = e.target;
    return at.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName);
  }

  document.addEventListener("keydown", function (e) {
    if (e.ctrlKey || e.metaKey || e.altKey || typing(e)) return;
    const rows = Array.from(document.querySelectorAll("a.row"));
    if (e.key === "/" && document.getElementById("search")) {
      e.preventDefault();
      document.getElementById("search").focus();
    } else if ((e.key === "j" || e.key === "k") && rows.length) {
      e.preventDefault();
      const now = rows.indexOf(document.activeElement);
      const next = now < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, now + (e.key === "j" ? 1 : -1)));
      rows[next].focus();
    }
  });

  // the number behind a sentence leads to its fields, folded away or not
  document.addEventListener("click", function (e) {
    const link = e.target.closest && e.target.closest(".refs a");
    const place = link && document.getElementById(link.hash.slice(1));
    if (!place) return;
    e.preventDefault();
    const folded = place.closest("details");
    if (folded) folded.open = true;
    place.focus();
  });

  // a sentence is one line of text however many it takes on the screen
  function fit(area) {
    area.style.height = "auto";
    area.style.height = area.scrollHeight + 2 + "px";
  }
  function fitAll(root) {
    root.querySelectorAll("textarea.words").forEach(fit);
  }
  document.addEventListener("input", function (e) {
    if (e.target.matches("textarea.words")) fit(e.target);
  });
  document.addEventListener("keydown", function (e) {
    if (e.key === "Enter" && e.target.matches("textarea.words")) {
      e.preventDefault(); // done with this one
      e.target.blur();
    }
  });
  window.addEventListener("resize", function () { fitAll(document); });
  document.addEventListener("htmx:afterSettle", function () { fitAll(document); });
  document.addEventListener("DOMContentLoaded", function () { fitAll(document); });

  // while she is in the fields, what a sentence changes there waits: a form that is exchanged loses its change
  document.addEventListener("htmx:oobBeforeSwap", function (e) {
    const place = document.getElementById(e.detail.target.id);
    if (place && e.detail.target.id === "findings" && place.contains(document.activeElement)) {
      e.detail.shouldSwap = false;
    }
  });

  // what was typed between a request and its answer is put back, and saved
  let typed = null;
  document.addEventListener("input", function (e) {
    if (e.target.matches("textarea.words")) e.target.dataset.typed = "yes";
  });
  document.addEventListener("htmx:configRequest", function (e) {
    if (e.target.matches && e.target.matches("textarea.words")) delete e.target.dataset.typed;
  });
  document.addEventListener("htmx:beforeSwap", function (e) {
    const at = document.activeElement;
    typed = null;
    if (e.detail.target.id === "report" && at && at.matches("textarea.words") && at.dataset.typed) {
      typed = { id: at.id, text: at.value, of: document.querySelectorAll("textarea.words").length };
    }
  });
  document.addEventListener("htmx:afterSettle", function () {
    if (!typed) return;
    const area = document.getElementById(typed.id);
    const same = document.querySelectorAll("textarea.words").length === typed.of;
    if (area && same && area.value !== typed.text) {
      area.value = typed.text;
      area.dispatchEvent(new Event("input", { bubbles: true }));
    }
    typed = null;
  });

  // accepting against the checks is asked once more; and the second click of a double one, which falls onto the
  // next draft, decides nothing there
  const SOON_MS = 1500;
  document.addEventListener("htmx:confirm", function (e) {
    if (e.target.closest(".decide") && performance.now() < SOON_MS) {
      e.preventDefault();
      return;
    }
    const words = e.target.dataset && e.target.dataset.confirm;
    const linter = document.getElementById("linter");
    if (words && linter && linter.classList.contains("speaks")) {
      e.preventDefault();
      e.target.elements.despite.value = "";
      if (window.confirm(words)) {
        e.target.elements.despite.value = "yes";
        e.detail.issueRequest(true);
      }
    }
  });

  // after a saved change the words of the last problem are out of date
  document.addEventListener("htmx:beforeRequest", function (e) {
    const verb = e.detail.requestConfig && e.detail.requestConfig.verb;
    if (verb === "post") {
      const place = document.getElementById("message");
      if (place) place.textContent = "";
    }
  });
  document.addEventListener("review:changed", function () {
    const place = document.getElementById("conflict");
    if (place) place.textContent = "";
  });
})();
