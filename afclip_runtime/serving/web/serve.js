"use strict";

const $ = (id) => document.getElementById(id);
const STOPS = [[48, 18, 59], [70, 107, 227], [40, 187, 236], [49, 242, 153], [162, 252, 60], [237, 208, 58], [251, 128, 34], [210, 49, 5], [122, 4, 3]]; // cold to hot
const COLOURS = Array.from({length: 256}, (_, i) => {
  const at = i / 255 * (STOPS.length - 1), k = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[k].map((from, c) => from + (at - k) * (STOPS[k + 1][c] - from));
});

let model = null; // facts of the server
let shown = null; // {file, result, values, inside}: the inspected image
let latest = 0; // number of the latest request; answers to older ones are ignored
const chosen = {threshold: null, pixel: null}; // set by hand; null for the model's threshold
const given = (key) => chosen[key] ?? model?.[key === "pixel" ? "pixel_threshold" : "threshold"] ?? null;
const byDefault = (key) => chosen[key] === null && model?.threshold_from === "default"; // the head's threshold, for any product
const digits = (value) => String(Number(value.toPrecision(4)));

// The token, if the server requires one. It is kept until the tab is closed, or until a reload if the browser has no storage.
const kept = (() => { try { return window.sessionStorage; } catch { return null; } })();
let token = kept?.getItem("token") ?? null;
let asking = null; // set while the dialog is open: all requests wait for it

function askToken(why) {
  asking ??= new Promise((resolve, reject) => {
    const dialog = $("sign-in");
    say("token-message", why);
    dialog.returnValue = "";
    dialog.onclose = () => {
      asking = null;
      if (dialog.returnValue !== "given") return reject(new Error("The server requires a token. Reload the page to enter it."));
      token = $("token").value;
      kept?.setItem("token", token);
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

async function answerOf(path, options = {}) {
  for (;;) {
    const sent = token, headers = {...options.headers, ...(sent && {Authorization: `Bearer ${sent}`})};
    let answer;
    try {
      answer = await fetch(path, {...options, headers});
    } catch {
      throw new Error("The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer;
    const body = await answer.json().catch(() => null);
    const why = typeof body?.detail === "string" ? body.detail : `The server answers ${answer.status}.`;
    if (answer.status !== 401 && answer.status !== 429) throw new Error(why);
    if (sent === token) await askToken(sent === null ? "" : why); // else it was entered meanwhile
  }
}

const ask = (path, options) => answerOf(path, options).then((answer) => answer.json());

async function send(path, file) {
  if (file.size > model.max_bytes) throw new Error(`larger than ${model.max_bytes / 2 ** 20} MB, the limit.`);
  return ask(path, {method: "POST", body: file, headers: {"Content-Type": "application/octet-stream"}});
}

// The error of a file with its name, which the server does not know.
const about = (file, error) => `${file.name}: ${error.message.replace(/^the image: /, "")}`;

function say(id, text) {
  $(id).textContent = text;
  $(id).hidden = !text;
}

function saveAs(content, name) {
  const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(content), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // a browser may read it after the click
}

function facts(now) {
  model = now;
  $("model").textContent = `${now.title && `${now.title} · `}${now.method}${now.category === "object" ? "" : ` · ${now.category}`} · ${now.backbone}`;
  $("toy").hidden = !now.toy;
  say("roi", now.roi === null ? "" : `Only the region of interest is inspected: ${(100 * now.roi).toFixed(1)} % of each image; the rest is shown dark.`);
  calibration(now);
  $("few-shot").hidden = !now.max_few_shot;
  $("reset-few-shot").hidden = !now.few_shot;
  const known = $("few-shot-images").childElementCount;
  if (known > now.few_shot) $("few-shot-images").replaceChildren();
  if (!known && now.few_shot) $("few-shot-images").append(...Array.from({length: now.few_shot}, () => Object.assign(document.createElement("span"), {textContent: "normal"})));
}

function calibration(now) {
  const missing = Math.max(0, now.min_normals - now.normals), wanted = now.calibration === null;
  $("calibration").classList.toggle("wanted", wanted);
  $("calibrated").textContent = !wanted ? now.calibration
    : now.normals ? `${now.normals} normal images, ${missing ? `${missing} more are needed` : "enough for a threshold"}.`
    : `None yet, so ${now.threshold_from === "default" ? "the verdict is by the head's default threshold, not by one of your product" : "there is no verdict"}. Give at least ${now.min_normals} different images of normal products: the threshold comes from them.`;
  $("normals-label").textContent = wanted ? "Drop normal images here, or choose them" : "Calibrate from normal images";
  $("download").hidden = wanted;
  $("reset-normals").hidden = !now.normals;
}

async function calibrate(files) {
  say("normals-message", "");
  const bar = $("normals-progress"), problems = [];
  Object.assign(bar, {max: files.length, value: 0, hidden: false});
  try {
    for (const file of files) {
      try {
        facts(await send("/api/normals", file));
      } catch (error) {
        problems.push(about(file, error));
      }
      bar.value++;
    }
    if (model.normals >= model.min_normals) {
      facts(await ask("/api/calibration", {method: "POST"}));
      chosen.threshold = chosen.pixel = null;
    }
  } catch (error) {
    problems.push(error.message);
  }
  bar.hidden = true;
  say("normals-message", problems.slice(0, 3).join(" ") + (problems.length > 3 ? ` And ${problems.length - 3} more.` : ""));
  if (shown) await inspect(shown.file);
}

async function inspect(file) {
  const number = ++latest;
  say("message", "");
  $("busy").hidden = false;
  $("wrong").disabled = true;
  try {
    const result = await send("/api/inspect?map=true", file);
    if (number !== latest) return;
    say("note", result.note);
    say("feedback-message", "");
    await show(file, result);
  } catch (error) {
    if (number === latest) say("message", about(file, error) + (shown ? ` The picture and the verdict are still those of ${shown.file.name}.` : ""));
  } finally {
    if (number === latest) {
      $("busy").hidden = true;
      $("wrong").disabled = false;
    }
  }
}

async function show(file, result) {
  const bytes = Uint8Array.from(atob(result.map.values), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = Float32Array.from({length: bytes.length / 2}, (_, i) => result.map.low + result.map.step * view.getUint16(2 * i, true));
  const bits = result.map.inside === null ? null : Uint8Array.from(atob(result.map.inside), (c) => c.charCodeAt(0));
  const inside = values.map((_, i) => bits === null || bits[i >> 3] >> (7 - (i & 7)) & 1); // pixels of the region of interest
  if (shown?.file !== file) {
    const image = $("image");
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(file);
    const seen = await image.decode().then(() => true, () => false); // the server reads formats that a browser does not
    image.className = seen ? "" : "unseen";
    if (!seen) image.src = blank(result.width, result.height);
    $("frame").className = Math.max(result.width, result.height) < 480 ? "small" : ""; // a small image is upsampled
  }
  shown = {file, result, values, inside};
  $("drop").hidden = $("try").hidden = true;
  $("view").hidden = false;
  $("name").textContent = `${file.name} · ${result.width} × ${result.height}`;
  for (const key of ["threshold", "pixel"]) range(key);
  regionShown(result.width, result.height);
  draw();
}

function blank(width, height) {
  return "data:image/svg+xml," + encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"/>`);
}

// The slider covers the range of this image's values and the threshold. Without a threshold it is dimmed, in the middle.
function range(key) {
  const {result} = shown;
  const high = key === "pixel" ? result.map.low + result.map.step * 65535 : result.score;
  const low = Math.min(0, key === "pixel" ? result.map.low : result.score);
  const at = given(key);
  const top = Math.max(at ?? 0, high) + 0.25 * (Math.max(at ?? 0, high) - low || 1);
  Object.assign($(key), {min: low, max: top, value: at ?? (low + top) / 2, disabled: false, className: at === null ? "unset" : ""});
  Object.assign($(`${key}-value`), {value: at === null ? "" : digits(at), disabled: false, placeholder: "none"});
}

function draw() {
  if (!shown) return;
  const {result, values, inside} = shown, {width, height} = result.map;
  const pixel = given("pixel"), threshold = given("threshold"), strength = Number($("strength").value);
  const calibrated = model.pixel_scale !== null && pixel !== null;
  const low = result.map.low, span = result.map.step * 65535 || 1;
  const picture = new ImageData(width, height), marked = new Uint8Array(width * height);
  let area = 0, inspected = 0;
  for (let i = 0; i < values.length; i++) {
    if (!inside[i]) { picture.data[4 * i + 3] = 170; continue; } // pixels that are not inspected are dark
    inspected++;
    const heat = calibrated ? 1 / (1 + Math.exp((pixel - values[i]) / model.pixel_scale)) : (values[i] - low) / span;
    picture.data.set(COLOURS[Math.round(255 * Math.min(Math.max(heat, 0), 1))], 4 * i);
    picture.data[4 * i + 3] = 255 * strength * heat;
    if (pixel !== null && values[i] > pixel) { marked[i] = 1; area++; }
  }
  say("scale", !calibrated ? "Colours run from this image's lowest to its highest value: even a normal image has a red spot." + (pixel === null ? " There is no threshold yet." : "")
    : byDefault("pixel") ? "Colours by the default threshold of the head, not of your product." : "");
  const canvas = $("overlay");
  Object.assign(canvas, {width, height});
  contour(picture, marked, width, height);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  const verdict = threshold === null ? "" : result.score > threshold ? "anomalous" : "normal";
  $("verdict").className = verdict;
  $("verdict").textContent = {anomalous: "Anomalous", normal: "Normal", "": "No verdict yet"}[verdict];
  say("why", verdict === "" ? "There is no threshold yet. Calibrate from normal images, or choose one below."
    : byDefault("threshold") ? "By the default threshold of the head, not of your product: calibrate from normal images." : "");
  feedback(result);
  $("score").textContent = digits(result.score);
  $("area").textContent = pixel === null ? "–" : `${(100 * area / inspected).toFixed(area ? 2 : 0)} %`;
  $("regions").textContent = pixel === null ? "–" : regions(marked, width, height);
  $("origin").textContent = chosen.threshold !== null || chosen.pixel !== null ? "Chosen by hand on this page."
    : model.threshold_from === "calibration" ? "From the calibration."
    : model.threshold_from === "default" ? `Default of the head. ${model.chosen}` : "None yet: calibrate, or choose them here.";
}

// Shows the mark of the verdict, or the button to mark it. Only for the calibration's threshold, not for one set by hand.
function feedback({mark, score}) {
  $("feedback").hidden = model.threshold_from !== "calibration" || (!mark && chosen.threshold !== null);
  $("marked").textContent = mark ? `Marked as ${mark}.` : "";
  $("wrong").textContent = mark ? "Undo" : `This verdict is wrong: it is ${score > model.threshold ? "normal" : "anomalous"}`;
}

async function giveFeedback() {
  const {file, result} = shown, before = model.threshold;
  say("feedback-message", "");
  try {
    const mark = result.mark ? null : result.score > before ? "normal" : "anomalous";
    facts(await (mark ? ask(`/api/feedback?${new URLSearchParams({image: result.image, mark, name: file.name.slice(-200)})}`, {method: "POST"})
      : ask(`/api/feedback/${result.image}`, {method: "DELETE"})));
    result.mark = mark;
    say("feedback-message", model.threshold === before ? "Noted. The threshold does not change."
      : `Noted. The threshold has moved from ${digits(before)} to ${digits(model.threshold)}.`);
    range("threshold");
    draw();
  } catch (error) {
    say("feedback-message", error.message);
  }
}

// White contour around the marked region, with a dark line outside to be visible on white.
function contour(picture, marked, width, height) {
  const reach = Math.max(1, Math.round(Math.max(width, height) / 400));
  const paint = (i, colour) => picture.data.set([colour, colour, colour, 255], 4 * i);
  const near = (x, y, far, value) => {
    for (let v = Math.max(0, y - far); v <= Math.min(height - 1, y + far); v++)
      for (let u = Math.max(0, x - far); u <= Math.min(width - 1, x + far); u++)
        if (marked[v * width + u] === value) return true;
    return false;
  };
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (marked[i] && near(x, y, reach, 0)) paint(i, 255);
      else if (!marked[i] && near(x, y, reach, 1)) paint(i, 20);
    }
  }
}

function regions(marked, width, height) {
  const left = marked.slice(), stack = [];
  let count = 0;
  for (let start = 0; start < left.length; start++) {
    if (!left[start]) continue;
    count++;
    stack.push(start);
    left[start] = 0;
    while (stack.length) {
      const i = stack.pop(), x = i % width, y = (i - x) / width;
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++)
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++)
          if (left[v * width + u]) { left[v * width + u] = 0; stack.push(v * width + u); }
    }
  }
  return count;
}

function choose(key, text, other) {
  const value = Number(text);
  if (text === "" || !Number.isFinite(value)) return;
  chosen[key] = value;
  $(key).className = "";
  if (other.type === "range") other.max = Math.max(other.max, value);
  other.value = other.type === "range" ? value : digits(value);
  draw();
}

async function changeFewShot(action) {
  say("few-shot-message", "");
  chosen.threshold = chosen.pixel = null; // scores change, so thresholds set by hand no longer hold
  try {
    await action();
  } catch (error) {
    say("few-shot-message", error.message);
  }
  if (shown) await inspect(shown.file);
}

$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) inspect(file);
});
$("sample").addEventListener("click", async () => {
  const picture = await fetch("/sample.jpg").then((answer) => answer.blob()).catch(() => null);
  if (picture) inspect(new File([picture], "the sample image", {type: picture.type}));
  else say("message", "The server does not answer. Is it still running?");
});
$("again").addEventListener("click", () => $("file").click());
$("download").addEventListener("click", async () => {
  say("normals-message", "");
  try {
    saveAs(await (await answerOf("/api/calibration")).blob(), "head.calibration.json"); // a plain link would not send the token
  } catch (error) {
    say("normals-message", error.message);
  }
});
for (const key of ["threshold", "pixel"]) {
  $(key).addEventListener("input", () => choose(key, $(key).value, $(`${key}-value`)));
  $(`${key}-value`).addEventListener("change", () => choose(key, $(`${key}-value`).value, $(key)));
}
$("wrong").addEventListener("click", giveFeedback);
$("strength").addEventListener("input", draw);
$("few-shot-files").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  changeFewShot(async () => {
    for (const file of files) {
      const now = await send("/api/few_shot", file).catch((error) => { throw new Error(about(file, error)); });
      const picture = Object.assign(document.createElement("img"), {alt: file.name, title: file.name, src: URL.createObjectURL(file)});
      $("few-shot-images").append(picture);
      facts(now);
    }
  });
});
$("reset-few-shot").addEventListener("click", () => changeFewShot(async () => facts(await ask("/api/few_shot", {method: "DELETE"}))));
$("normals").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  if (files.length) calibrate(files);
});
$("reset-normals").addEventListener("click", async () => {
  say("normals-message", "");
  chosen.threshold = chosen.pixel = null;
  try {
    facts(await ask("/api/normals", {method: "DELETE"}));
  } catch (error) {
    say("normals-message", error.message);
  }
  if (shown) await inspect(shown.file);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    const normal = event.target instanceof Element && event.target.closest("#calibration") !== null;
    const over = kind === "dragenter" || kind === "dragover";
    $("calibration").classList.toggle("over", over && normal);
    $("stage").classList.toggle("over", over && !normal);
    const files = kind === "drop" ? [...event.dataTransfer.files] : [];
    if (files.length && normal) calibrate(files);
    else if (files.length) inspect(files[0]);
  });
}
ask("/api/model").then(facts, (error) => say("message", error.message)).finally(() => document.body.toggleAttribute("data-ready", true));
