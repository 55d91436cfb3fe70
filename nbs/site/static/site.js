// Opened from a folder, a page may not read its neighbours: the search then lists pages without an excerpt.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// A formula in a line of text that is wider than a small screen gets a line of its own, which scrolls.
function makeRoom() {
  for (const formula of document.querySelectorAll("mjx-container:not([display])")) {
    formula.classList.remove("wide");
    if (formula.getBoundingClientRect().width > formula.closest("p, li, td, dd, div").clientWidth) formula.classList.add("wide");
  }
}
window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(makeRoom));
window.addEventListener("resize", makeRoom);
