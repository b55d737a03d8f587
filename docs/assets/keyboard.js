/* The switches of the theme are labels of hidden check boxes. Here they become buttons with a name, which Tab reaches.
   The theme itself presses a label that has the focus when Enter is pressed. */
const SWITCHES = { __drawer: "Navigation", __search: "Search", __toc: "Table of contents" };

for (const label of document.querySelectorAll("label.md-header__button, label.md-nav__link, label.md-search__icon")) {
  const box = document.getElementById(label.htmlFor);
  if (box.type !== "checkbox") continue; // the radio buttons of the colours have names, and Tab reaches them
  const section = label.parentElement.querySelector("a")?.textContent.trim() ?? label.textContent.trim();
  label.tabIndex = 0;
  label.setAttribute("role", "button");
  label.setAttribute("aria-label", SWITCHES[box.id] ?? `Pages of ${section}`);
  label.addEventListener("keydown", (event) => {
    if (event.key !== " ") return;
    event.preventDefault(); // the page does not scroll
    label.click();
  });
  const tell = () => label.setAttribute("aria-expanded", String(box.checked));
  box.addEventListener("change", tell);
  tell();
}
for (const drawing of document.querySelectorAll("svg")) drawing.setAttribute("aria-hidden", "true"); // its button has a name
document.querySelector(".md-search").setAttribute("aria-label", "Search");
document.querySelector(".md-search [type=reset]").removeAttribute("tabindex");
