// Classifies pictures with model.onnx on the device that opened the page. Reads files of its own folder alone.
"use strict";
const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const WARM_UP = 5, RUNS = 50, TOP = 5;
let config, session, input;

start().catch(show_problem);

async function start() {
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("offline.js").catch(() => {});  // wants https
  config = await (await fetch("model.json")).json();
  document.title = $("name").textContent = config.name;
  $("about").textContent = `${config.size} × ${config.size} pixels, ${config.megabytes} MB, runs in this browser: ` +
    "no picture leaves this device.";
  const runtime = await choose_runtime();
  await load_script(`ort.${runtime}.min.js`);
  ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  session = await ort.InferenceSession.create("model.onnx", { executionProviders: [runtime] });
  const threads = runtime === "wasm" ? `, ${ort.env.wasm.numThreads} thread(s)` : "";
  $("device").textContent = `onnxruntime-web ${config.onnxruntime}, ${runtime}${threads}; ${navigator.userAgent}`;
  listen();
  if (query.has("picture")) await classify(await (await fetch(query.get("picture"))).blob());
  if (query.has("measure")) await measure();
  document.body.dataset.state = "ready";
}

async function choose_runtime() {
  const adapter = navigator.gpu ? await navigator.gpu.requestAdapter().catch(() => null) : null;
  if (adapter) $("runtime").add(new Option("graphics (WebGPU)", "webgpu"));
  const runtime = adapter && query.get("runtime") === "webgpu" ? "webgpu" : "wasm";
  $("runtime").value = runtime;
  $("runtime").onchange = (event) => { query.set("runtime", event.target.value); location.search = query; };
  return runtime;
}

function load_script(file) {
  return new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src: file, onload: resolve });
    script.onerror = () => reject(new Error(`${file} is missing from this folder`));
    document.head.append(script);
  });
}

function listen() {
  const take = (files) => { if (files && files.length) classify(files[0]).catch(show_problem); };
  $("file").onchange = (event) => take(event.target.files);
  document.onpaste = (event) => take(event.clipboardData.files);
  document.ondragover = (event) => { event.preventDefault(); $("drop").classList.add("over"); };
  document.ondragleave = () => $("drop").classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    take(event.dataTransfer.files);
  };
  $("measure").disabled = false;
  $("measure").onclick = () => measure().catch(show_problem);
  if (navigator.mediaDevices) {
    $("camera").hidden = false;
    $("camera").onclick = () => watch().catch(show_problem);
  }
}

async function watch() {
  const video = $("video");
  if (video.srcObject) {  // a second press takes the picture
    await classify(video);
    video.srcObject.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    video.hidden = true;
    $("camera").textContent = "Camera";
    return;
  }
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  await video.play();
  video.hidden = false;
  $("camera").textContent = "Take the picture";
}

// The centre of the picture, as in training: the shorter side becomes size / crop, or both do, and the middle is kept.
async function classify(source) {
  $("problem").textContent = "";
  const whole = await createImageBitmap(source).catch(() => { throw new Error("This file is no picture."); });
  const full = new OffscreenCanvas(whole.width, whole.height).getContext("2d", { willReadFrequently: true });
  full.fillStyle = "white";
  full.fillRect(0, 0, whole.width, whole.height);
  full.drawImage(whole, 0, 0);
  const small = shrink(full.getImageData(0, 0, whole.width, whole.height));
  const canvas = $("picture");
  canvas.width = canvas.height = config.size;
  canvas.hidden = false;
  canvas.getContext("2d").putImageData(small, 0, 0);
  input = to_tensor(small.data);
  show_answers(await run());
}

// The middle of a picture at the network's size, by the bicubic filter that training used; browsers' own filters differ.
function shrink({ width, height, data }) {
  const size = config.size, shorter = Math.min(width, height);
  const scale = (side) => (config.squash ? side : shorter) * config.crop / size;
  const columns = taps(width, scale(width)), rows = taps(height, scale(height));
  const narrow = new Float32Array(height * size * 3), small = new ImageData(size, size);
  for (let y = 0; y < height; y++)
    columns.forEach(({ first, weights }, x) => {
      for (let channel = 0; channel < 3; channel++)
        narrow[(y * size + x) * 3 + channel] =
          weights.reduce((sum, weight, i) => sum + weight * data[(y * width + first + i) * 4 + channel], 0);
    });
  rows.forEach(({ first, weights }, y) => {
    for (let x = 0; x < size; x++) {
      for (let channel = 0; channel < 3; channel++)
        small.data[(y * size + x) * 4 + channel] =
          weights.reduce((sum, weight, i) => sum + weight * narrow[((first + i) * size + x) * 3 + channel], 0);
      small.data[(y * size + x) * 4 + 3] = 255;
    }
  });
  return small;
}

// For every pixel along one side: the source pixels that it is made of, from the first one on, and their weights.
function taps(length, scale) {
  const wide = Math.max(scale, 1), start = (length - config.size * scale) / 2;
  return Array.from({ length: config.size }, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 2 * wide)), end = Math.min(length, Math.ceil(centre + 2 * wide));
    const weights = Array.from({ length: end - first }, (_, j) => cubic(Math.abs(first + j + 0.5 - centre) / wide));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

function cubic(x) {  // Keys (1981) with a = -1/2
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

function to_tensor(pixels) {
  const count = config.size * config.size, planes = new Float32Array(3 * count);
  for (let i = 0; i < count; i++)
    for (let channel = 0; channel < 3; channel++) planes[channel * count + i] = pixels[4 * i + channel];
  return new ort.Tensor("float32", planes, [1, 3, config.size, config.size]);
}

async function run() {
  const results = await session.run({ pictures: input });
  return results.probabilities.data;
}

function show_answers(probabilities) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, TOP);
  $("answers").replaceChildren(...order.map((index) => {
    const row = document.createElement("li"), label = document.createElement("span");
    const share = document.createElement("span");
    label.textContent = config.classes ? config.classes[index] : `class ${index}`;
    share.textContent = `${(100 * probabilities[index]).toFixed(1)} %`;
    row.style.setProperty("--share", share.textContent.replace(" ", ""));
    row.dataset.index = index;
    row.append(label, share);
    return row;
  }));
}

async function measure() {
  $("measure").disabled = true;
  input ??= to_tensor(new Uint8ClampedArray(4 * config.size * config.size));
  const times = [];
  for (let i = 0; i < WARM_UP + RUNS; i++) {
    const started = performance.now();
    await run();
    times.push(performance.now() - started);
    if (i % 10 === 0) await new Promise((resolve) => setTimeout(resolve));  // lets the page draw
  }
  const sorted = times.slice(WARM_UP).sort((a, b) => a - b);
  const at = (share) => sorted[Math.floor(share * (sorted.length - 1))].toFixed(2);
  $("latency").textContent = `${at(0.5)} ms per picture (half of ${RUNS} runs between ${at(0.25)} and ${at(0.75)} ms)`;
  $("latency").dataset.milliseconds = at(0.5);
  $("measure").disabled = false;
}

function show_problem(error) {
  $("problem").textContent = error.message || String(error);
  document.body.dataset.state = "failed";
}
