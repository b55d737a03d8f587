"""Requirements of keyboards and screen readers on a page, checked in a real browser."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOOK = """() => {
  const faults = [], shown = node => node.checkVisibility({checkOpacity: false, checkVisibilityCSS: true});
  const say = (node, what) => faults.push(what + ': ' + node.outerHTML.slice(0, 120));
  const text = ids => ids.split(' ').map(id => document.getElementById(id)?.textContent ?? '').join(' ').trim();
  const name = node => (node.getAttribute('aria-label') || text(node.getAttribute('aria-labelledby') ?? '')
    || [...(node.labels ?? [])].map(label => label.textContent.trim()).join(' ') || node.textContent.trim()
    || node.getAttribute('title') || [...node.querySelectorAll('img')].map(image => image.alt).join(' ')).trim();
  if (!document.documentElement.lang) faults.push('the page names no language');
  if (!document.title.trim()) faults.push('the page has no title');
  if (!document.querySelector('main, [role="main"]')) faults.push('the page has no main part');
  const headings = [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].filter(shown);
  if (headings.filter(node => node.tagName === 'H1').length !== 1) faults.push('the page has not one h1');
  headings.reduce((above, node) => {
    const level = +node.tagName[1];
    if (above && level > above + 1) say(node, 'a level of headings is left out');
    return level;
  }, 0);
  for (const node of document.querySelectorAll('img')) if (!node.hasAttribute('alt')) say(node, 'no text for an image');
  for (const node of document.querySelectorAll('svg')) {
    const hidden = node.closest('[aria-hidden="true"], button, a');
    if (!hidden && !node.getAttribute('aria-label') && !node.querySelector('title')) say(node, 'no text for a drawing');
  }
  for (const node of document.querySelectorAll('a[href], button, input:not([type=hidden]), select, textarea, summary'))
    if (shown(node) && !name(node)) say(node, 'no name');
  for (const node of document.querySelectorAll('[tabindex]')) if (node.tabIndex > 0) say(node, 'an order of its own');
  for (const node of document.querySelectorAll('table'))
    if (shown(node) && !node.querySelector('th')) say(node, 'no header');
  return faults;
}"""


def faults_of(page: "Page") -> list[str]:
    """Returns the faults of a page for screen readers, one line each."""
    found: list[str] = page.evaluate(LOOK)
    return found


def unreachable(page: "Page", selector: str) -> list[str]:
    """Returns the visible elements of a selector that the Tab key does not reach from the top of the page."""
    page.evaluate("() => { document.activeElement?.blur(); window.scrollTo(0, 0); window.reached = new Set(); }")
    wanted = page.locator(selector).filter(visible=True).count()
    for _ in range(3 * wanted + 60):
        page.keyboard.press("Tab")
        page.evaluate("() => window.reached.add(document.activeElement)")
    missing: list[str] = page.evaluate(
        "selector => [...document.querySelectorAll(selector)].filter(node => node.checkVisibility() && !node.disabled"
        " && !window.reached.has(node)).map(node => node.outerHTML.slice(0, 120))",
        selector,
    )
    return missing
