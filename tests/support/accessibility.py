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


CONTRAST = """() => {
  const pixel = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), known = new Map();
  const parts = colour => {
    if (!known.has(colour)) {
      pixel.clearRect(0, 0, 1, 1);
      pixel.fillStyle = colour;
      pixel.fillRect(0, 0, 1, 1);
      known.set(colour, [...pixel.getImageData(0, 0, 1, 1).data].map(part => part / 255));
    }
    return known.get(colour);
  };
  const over = (top, below) => {
    const alpha = top[3] + below[3] * (1 - top[3]);
    return [0, 1, 2].map(i => alpha && (top[i] * top[3] + below[i] * below[3] * (1 - top[3])) / alpha).concat(alpha);
  };
  const luminance = colour => colour.slice(0, 3).map(part =>
    part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4).reduce((sum, part, i) =>
    sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (node, colour) => {
    let text = parts(colour), ground = [0, 0, 0, 0];
    for (let above = node; above; above = above.parentElement) {
      const style = getComputedStyle(above), own = parts(style.backgroundColor);
      [text, ground] = [text, ground].map(one => over(one, own));
      for (const one of [text, ground]) one[3] *= style.opacity;
    }
    const [bright, dim] = [text, ground].map(one => luminance(over(one, [1, 1, 1, 1]))).sort((a, b) => b - a);
    return (bright + 0.05) / (dim + 0.05);
  };
  const faults = new Set(), shown = {opacityProperty: true, visibilityProperty: true};
  const look = (node, text, colour) => {
    const style = getComputedStyle(node), found = ratio(node, colour ?? style.color);
    const large = parseFloat(style.fontSize) >= (style.fontWeight >= 700 ? 18.66 : 24);
    const where = `${node.tagName} ${node.className}: ${text.slice(0, 40)}`;
    if (found < (large ? 3 : 4.5)) faults.add(`${found.toFixed(2)} ${where}`);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), node = texts.currentNode.parentElement;
    if (text && node.checkVisibility(shown) && !node.closest(':disabled, svg')) look(node, text);
  }
  for (const node of document.querySelectorAll(':is(input, textarea):placeholder-shown'))
    if (node.checkVisibility(shown)) look(node, node.placeholder, getComputedStyle(node, '::placeholder').color);
  return [...faults];
}"""


START = """() => {
  document.activeElement?.blur();
  window.scrollTo(0, 0);
  window.reached = new Set();
  document.addEventListener('focusin', event => window.reached.add(event.target));
}"""
MISSED = """selector => {
  const groups = new Set([...window.reached].filter(node => node?.type === 'radio').map(node => node.name));
  return [...document.querySelectorAll(selector)].filter(node => node.checkVisibility({visibilityProperty: true})
    && !node.disabled && !window.reached.has(node) && !(node.type === 'radio' && groups.has(node.name)))
    .map(node => node.outerHTML.slice(0, 120));
}"""


def faults_of(page: "Page") -> list[str]:
    """Returns the faults of a page for screen readers, one line each."""
    found: list[str] = page.evaluate(LOOK)
    return found


def faint(page: "Page") -> list[str]:
    """Returns the visible texts that stand out too little from what lies below: one line per text.

    The limits are those of WCAG 2.2, level AA: a contrast of 4.5, and of 3 for large text. Below a text are the colours
    of the elements around it; pictures are not looked at.
    """
    found: list[str] = page.evaluate(CONTRAST)
    return found


def unreachable(page: "Page", selector: str) -> list[str]:
    """Returns the visible elements of a selector that the Tab key does not reach from the top of the page.

    Tab enters a group of radio buttons once, and arrow keys move within it: one reached button stands for its group.
    """
    page.evaluate(START)
    wanted = page.locator(selector).filter(visible=True).count()
    missing: list[str] = []
    for pressed in range(1, 3 * wanted + 61):
        page.keyboard.press("Tab")
        if pressed % 30 == 0 or pressed == 3 * wanted + 60:
            missing = page.evaluate(MISSED, selector)
            if not missing:
                break
    return missing
