// Inductive Moment Matching in a browser: the networks, the jump, the sampler, and the two figures that play with them.
// The first half is chapters 03a, 04, 03 and 09 again in plain JavaScript; the second half is the page. Weights come from models.js.
"use strict";
const ImmPlayer = (() => {

// ---- Memory and the product of matrices

// product.wat, assembled by `npx --package=wabt wat2wasm product.wat -o product.wasm` and written in base64
const PRODUCT = `AGFzbQEAAAABCwFgB39/f39/f38AAhIBBnBsYXllcgZtZW1vcnkCAAEDAgEABwsBB3Byb2R1Y3QAAAqgAgGdAgIKfwV7A0BBACEHIAAhCSADIAhqIQ0DQC
ACIAhq/QAEACESIBIhEyASIRQgEiEVIAkhCiAJIAVqIQwgBSEOIAVBAXQhDyAPIAVqIRAgASAIaiELA0AgC/0ABAAhESASIBEgCv0JAgD95gH95AEhEiATIBEgCiAOav
0JAgD95gH95AEhEyAUIBEgCiAPav0JAgD95gH95AEhFCAVIBEgCiAQav0JAgD95gH95AEhFSALIAZqIQsgCkEEaiIKIAxJDQALIA0gEv0LBAAgDSAGaiINIBP9CwQAIA
0gBmoiDSAU/QsEACANIAZqIg0gFf0LBAAgDSAGaiENIAkgEGogBWohCSAHQQRqIgcgBEkNAAsgCEEQaiIIIAZJDQALCw==`.replace(/\s/g, "");

// Numbers come in base85, as Python's base64.b85encode writes it: five letters for four bytes, a twentieth less text than base64
const LETTERS = new Uint8Array(128);
[..."0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"].forEach((c, i) => LETTERS[c.charCodeAt(0)] = i);

function bytes(text) {
  const words = Math.ceil(text.length / 5), view = new DataView(new ArrayBuffer(4 * words));
  for (let w = 0, i = 0; w < words; w++) {
    let n = 0;
    for (let c = 0; c < 5; c++, i++) n = 85 * n + (i < text.length ? LETTERS[text.charCodeAt(i)] : 84);
    view.setUint32(4 * w, n);
  }
  return new Uint8Array(view.buffer, 0, Math.floor(text.length * 4 / 5));
}
const four = n => n + 3 & ~3;                              // rows and columns come in fours, as the product takes them

class Memory {
  // One long row of float32: weights stay where they were put, what a network computes is taken from the top and given back
  constructor(pages, plain = false) {
    this.buffer = new ArrayBuffer(65536 * pages);
    this.product = null;
    if (!plain) try {
      const memory = new WebAssembly.Memory({ initial: pages });
      this.product = new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.from(atob(PRODUCT), c => c.charCodeAt(0))), { player: { memory } }).exports.product;
      this.buffer = memory.buffer;
    } catch { /* WebAssembly or its vectors are missing or forbidden: plain JavaScript does the same, slower */ }
    this.floats = new Float32Array(this.buffer);
    this.top = 0;
  }
  get arithmetic() { return this.product ? "WebAssembly" : "plain JavaScript"; }

  take(count) {
    const at = this.top;
    this.top += four(count);
    if (this.top > this.floats.length) throw new RangeError(`${count} numbers do not fit the player's memory; draw fewer samples at a time`);
    return at;
  }
  put(values) { const at = this.take(values.length); this.floats.set(values, at); return at; }

  linear(x, layer, rows) {
    // The place of y = x W' + b, [rows, columns]: x is a place too
    const { w, b, inputs: k, columns: n } = layer, m = four(rows), y = this.take(m * n), f = this.floats;
    if (this.product) { this.product(4*x, 4*w, 4*b, 4*y, m, 4*k, 4*n); return y; }
    for (let i = 0; i < rows; i++) {
      f.copyWithin(y + i*n, b, b + n);
      for (let j = 0; j < k; j++) {
        const v = f[x + i*k + j];
        for (let c = 0, at = w + j*n, to = y + i*n; c < n; c++) f[to + c] += v * f[at + c];
      }
    }
    return y;
  }
}

// ---- Weights: float16 in base85, in the order and with the names and shapes of the state_dict

const HALF = new Float32Array(65536);                        // what each of the 16-bit patterns means
for (let h = 0; h < 65536; h++) {
  const exponent = h >> 10 & 31, size = exponent ? 2 ** (exponent - 15) * (1 + (h & 1023) / 1024) : 2 ** -14 * (h & 1023) / 1024;
  HALF[h] = h >> 15 ? -size : size;
}

class Weights {
  constructor(model, M) {
    const halves = new Uint16Array(bytes(model.weights).buffer);
    Object.assign(this, { M, at: {}, shapes: model.shapes });
    let start = 0;
    for (const [name, shape] of Object.entries(model.shapes)) {
      const numbers = this.at[name] = new Float32Array(shape.reduce((a, b) => a * b, 1));
      for (let i = 0; i < numbers.length; i++) numbers[i] = HALF[halves[start++]];
    }
  }
  place(name) { return this.M.put(this.at[name]); }
  layer(name) {
    // A linear layer turned over, [inputs, outputs], its columns filled up to a multiple of four with zeros
    const weight = this.at[name + ".weight"], outputs = this.shapes[name + ".weight"][0], inputs = weight.length / outputs;
    const columns = four(outputs), turned = new Float32Array(inputs * columns), b = new Float32Array(columns);
    for (let o = 0; o < outputs; o++) for (let i = 0; i < inputs; i++) turned[i*columns + o] = weight[o*inputs + i];
    b.set(this.at[name + ".bias"]);
    return { inputs, columns, w: this.M.put(turned), b: this.M.put(b) };
  }
}

// ---- The networks of chapters 03a and 04. All samples of a call share their two times, as they do in a sampler

function sinusoid(t, count) {
  // Cosines, then sines, of t at frequencies from 1 down to 1/10000; JavaScript's numbers are float64, as times must be
  const phase = Array.from({ length: count }, (_, i) => t * 10000 ** (-i / count));
  return [...phase.map(Math.cos), ...phase.map(Math.sin)];
}
const silu = v => v / (1 + Math.exp(-v));
const gelu = v => v / (1 + Math.exp(-1.5957691216057308 * (v + .044715 * v*v*v)));     // with tanh(u) = 2 / (1 + exp(-2u)) - 1

class MLP {
  constructor(config, weights) {
    const { M } = weights, hidden = Array.from({ length: config.depth - 1 }, (_, i) => `hidden.${i}`);
    const layers = Object.fromEntries(["first", "t", "u", ...hidden, "last"].map(name => [name, weights.layer(name)]));
    Object.assign(this, { M, config, layers, hidden, frequencies: weights.place("frequencies") });
  }
  forward(x, t, u, labels) {
    const { M, config: { waves, width }, layers } = this, f = M.floats, B = labels.length, begin = M.top, row = 2 + 2*waves;
    const input = M.take(four(B) * row);
    for (let b = 0; b < B; b++) {
      f[input + b*row] = x[2*b]; f[input + b*row + 1] = x[2*b + 1];
      for (let i = 0; i < waves; i++) {
        const phase = x[2*b] * f[this.frequencies + i] + x[2*b + 1] * f[this.frequencies + waves + i];
        f[input + b*row + 2 + i] = Math.cos(phase); f[input + b*row + 2 + waves + i] = Math.sin(phase);
      }
    }
    const [at_t, at_u] = [[layers.t, t], [layers.u, u]].map(([layer, time]) => {
      const waves_t = M.take(4 * 64);
      f.set(sinusoid(time, 32), waves_t);
      return M.linear(waves_t, layer, 1);
    });
    let h = M.linear(input, layers.first, B);
    for (let i = 0; i < B * width; i++) f[h + i] = silu(f[h + i] + f[at_t + i % width] + f[at_u + i % width]);
    for (const name of this.hidden) {
      h = M.linear(h, layers[name], B);
      for (let i = 0; i < B * width; i++) f[h + i] = silu(f[h + i]);
    }
    const out = M.linear(h, layers.last, B);                            // two columns of four are the point
    M.top = begin;
    return Float32Array.from({ length: 2 * B }, (_, i) => f[out + 4*(i >> 1) + (i & 1)]);
  }
}

class DiT {
  constructor(config, weights) {
    const layers = {}, { M } = weights, deep = ["attention.qkv", "attention.out", "mlp.0", "mlp.2", "modulation"];
    const blocks = Array.from({ length: config.depth }, (_, i) => Object.fromEntries(deep.map(name => [name, weights.layer(`blocks.${i}.${name}`)])));
    for (const name of ["embed", ..."tu".split("").flatMap(v => [`condition.${v}.0`, `condition.${v}.2`]), "final.modulation", "final.linear"])
      layers[name] = weights.layer(name);
    Object.assign(this, { M, config, layers, blocks, positions: weights.place("positions"), names: weights.place("condition.label.weight") });
  }

  condition(t, u, labels) {
    // The two times and each label as one vector, after its SiLU: [B, width]
    const { M, layers, config: { width, classes } } = this, f = M.floats;
    const [at_t, at_u] = [["t", t], ["u", u]].map(([name, time]) => {
      const waves = M.take(4 * 256);
      f.set(sinusoid(time, 128), waves);
      const h = M.linear(waves, layers[`condition.${name}.0`], 1);
      for (let i = 0; i < width; i++) f[h + i] = silu(f[h + i]);
      return M.linear(h, layers[`condition.${name}.2`], 1);
    });
    const c = M.take(four(labels.length) * width);
    labels.forEach((label, b) => {
      const row = this.names + width * (label < 0 ? classes : label);          // null is the last row
      for (let i = 0; i < width; i++) f[c + b*width + i] = silu(f[at_t + i] + f[at_u + i] + f[row + i]);
    });
    return c;
  }

  modulated(h, rows, m, shift, columns) {
    // Layer norm of each token, scaled and shifted as its sample's row of m says: the shift stands at `shift`, the scale behind it
    const { M, tokens, config: { width } } = this, f = M.floats, y = M.take(four(rows) * width);
    for (let r = 0; r < rows; r++) {
      const at = h + r*width, steer = m + Math.floor(r / tokens) * columns + shift;
      let mean = 0, square = 0;
      for (let i = 0; i < width; i++) mean += f[at + i] / width;
      for (let i = 0; i < width; i++) square += (f[at + i] - mean) ** 2 / width;
      const scale = 1 / Math.sqrt(square + 1e-6);
      for (let i = 0; i < width; i++) f[y + r*width + i] = (f[at + i] - mean) * scale * (1 + f[steer + width + i]) + f[steer + i];
    }
    return y;
  }

  attention(qkv, B) {
    // Every token of an image looks at every other, head by head: softmax(q k' / sqrt(d)) v
    const { M, tokens: N, config: { width, heads } } = this, f = M.floats, d = width / heads, y = M.take(four(B*N) * width);
    const score = new Float64Array(N);
    for (let b = 0; b < B; b++) for (let head = 0; head < heads; head++) for (let i = 0; i < N; i++) {
      const q = qkv + (b*N + i) * 3*width + head*d, to = y + (b*N + i) * width + head*d;
      let sum = 0, most = -Infinity;
      for (let j = 0; j < N; j++) {
        const k = qkv + (b*N + j) * 3*width + width + head*d;
        let dot = 0;
        for (let c = 0; c < d; c++) dot += f[q + c] * f[k + c];
        most = Math.max(most, score[j] = dot / Math.sqrt(d));
      }
      for (let j = 0; j < N; j++) sum += score[j] = Math.exp(score[j] - most);
      f.fill(0, to, to + d);
      for (let j = 0; j < N; j++) {
        const v = qkv + (b*N + j) * 3*width + 2*width + head*d, share = score[j] / sum;
        for (let c = 0; c < d; c++) f[to + c] += share * f[v + c];
      }
    }
    return y;
  }

  pixel(token, i) {
    // Where the i-th number (channel last) of a token's patch stands in an image of one channel
    const { size, patch } = this.config, n = size / patch;
    return (Math.floor(token / n) * patch + Math.floor(i / patch)) * size + token % n * patch + i % patch;
  }
  get tokens() { return (this.config.size / this.config.patch) ** 2; }

  forward(x, t, u, labels) {
    const { M, layers, tokens, config: { size, patch, width } } = this, f = M.floats, B = labels.length, rows = B*tokens, begin = M.top;
    const c = this.condition(t, u, labels), patches = M.take(four(rows) * patch**2);
    for (let r = 0; r < rows; r++) for (let i = 0; i < patch**2; i++)
      f[patches + r*patch**2 + i] = x[Math.floor(r / tokens) * size**2 + this.pixel(r % tokens, i)];
    const h = M.linear(patches, layers.embed, rows), kept = M.top;
    for (let i = 0; i < rows * width; i++) f[h + i] += f[this.positions + i % (tokens * width)];
    for (const block of this.blocks) {
      const m = M.linear(c, block.modulation, B);                              // shift, scale, gate; twice
      const add = (y, gate) => {
        for (let r = 0; r < rows; r++) for (let i = 0, g = m + Math.floor(r / tokens) * 6*width + gate; i < width; i++)
          f[h + r*width + i] += f[g + i] * f[y + r*width + i];
      };
      const qkv = M.linear(this.modulated(h, rows, m, 0, 6*width), block["attention.qkv"], rows);
      add(M.linear(this.attention(qkv, B), block["attention.out"], rows), 2*width);
      const wide = M.linear(this.modulated(h, rows, m, 3*width, 6*width), block["mlp.0"], rows);
      for (let i = wide, end = wide + rows * block["mlp.0"].columns; i < end; i++) f[i] = gelu(f[i]);
      add(M.linear(wide, block["mlp.2"], rows), 5*width);
      M.top = kept;
    }
    const m = M.linear(c, layers["final.modulation"], B);
    const out = M.linear(this.modulated(h, rows, m, 0, 2*width), layers["final.linear"], rows), image = new Float32Array(B * size**2);
    for (let r = 0; r < rows; r++) for (let i = 0; i < patch**2; i++)
      image[Math.floor(r / tokens) * size**2 + this.pixel(r % tokens, i)] = f[out + r*layers["final.linear"].columns + i];
    M.top = begin;
    return image;
  }
}

// ---- The jump of chapter 03, with the straight lines of OT-FM and the preconditioner Simple-EDM, and the sampler of chapter 09

const NETS = { DiT, MLP };

class IMM {
  constructor(model, M) {
    Object.assign(this, model, { net: new NETS[model.network](model.net, new Weights(model, M)), arithmetic: M.arithmetic });
  }

  jump(x, t, s, labels, guidance = 1) {
    // f_{s,t}(x) = c_skip x + c_out G, in float64
    const { sigma_d, time_scale } = this, dot = (a, b) => (1 - a) * (1 - b) + a*b, B = labels.length;
    const skip = dot(s, t) / dot(t, t), out = -sigma_d * (t - s) / Math.sqrt(dot(t, t)), c_in = 1 / (sigma_d * Math.sqrt(dot(t, t)));
    const input = Float32Array.from(x, v => c_in * v), net = (v, l) => this.net.forward(v, time_scale * t, time_scale * s, l);
    let G = net(input, labels);
    if (guidance !== 1) {
      const G_null = net(input, Array(B).fill(-1));
      G = G.map((v, i) => G_null[i] + guidance * (v - G_null[i]));
    }
    return Float64Array.from(x, (v, i) => skip*v + out*G[i]);
  }

  uniform(steps) {
    return Array.from({ length: steps + 1 }, (_, i) => i === steps ? this.eps : this.T + i/steps * (this.eps - this.T));
  }

  pushforward(x, times, labels, guidance = 1) {
    // The samples at each of the times: x, which is sigma_d times normal noise, and where each jump ends
    const states = [Float64Array.from(x)];
    for (let i = 1; i < times.length; i++) states.push(this.jump(states[i - 1], times[i - 1], times[i], labels, guidance));
    return states;
  }
}

function normal(seed, count) {
  // Standard normal numbers: mulberry32's uniform ones, turned by Box and Muller
  const uniform = () => {
    seed = seed + 0x6D2B79F5 | 0;
    let z = Math.imul(seed ^ seed >>> 15, 1 | seed);
    z = z + Math.imul(z ^ z >>> 7, 61 | z) ^ z;
    return ((z ^ z >>> 14) >>> 0) / 2**32;
  };
  return Float64Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

const loaded = new Map();
function load(name, plain = false) {
  // A model of models.js, with 8 MB of its own: room for its weights and 64 digits, or 2,500 points, at a time
  const key = name + (plain ? ", plain" : "");
  if (!loaded.has(key)) loaded.set(key, new IMM(window.IMM_MODELS[name], new Memory(128, plain)));
  return loaded.get(key);
}

// ---- The page: two figures with the same desk

const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const pause = ms => new Promise(done => setTimeout(done, ms));

function make(parent, tag, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  parent.append(element);
  return element;
}

function sharp(canvas) {
  // A canvas with a pixel for each of the screen's, and its context in units of its own width, empty
  const side = Math.round((canvas.clientWidth || 300) * (window.devicePixelRatio || 1)), paint = canvas.getContext("2d");
  canvas.width = canvas.height = side;
  paint.scale(side, side);
  return paint;
}

class Figure {
  // What the two have in common: choices, jumps, stops, and the order of events. Each adds options, model, compute and the painting
  constructor(root, options) {
    Object.assign(this, { root, turn: 0, states: [] });
    this.find = selector => root.querySelector(selector);
    this.fields = Object.fromEntries(["steps", "guidance", "seed"].map(name => [name, this.find(`[name=${name}]`)]));
    options.forEach(([value, text, checked]) => {
      const label = make(this.find(".imm-choice"), "label");
      make(label, "input", { type: "radio", name: `imm-${root.dataset.figure}`, value, checked }).onchange = () => this.run();
      make(label, "span", { textContent: text });
    });
    this.fields.steps.oninput = () => { this.even(); this.run(); };
    if (this.fields.guidance) this.fields.guidance.oninput = () => this.run({ play: false });
    this.fields.seed.onchange = () => this.run();
    this.find("[name=another]").onclick = () => { this.fields.seed.value = this.seed + 1; this.run(); };
    this.find("[name=play]").onclick = () => this.run();
    this.find("[name=even]").onclick = () => { this.even(); this.run({ play: false }); };
    root.hidden = false;
    this.even();
    new ResizeObserver(() => { this.lines(); if (root.dataset.state === "done") this.paint(); }).observe(this.find(".imm-way"));
  }
  get steps() { return +this.fields.steps.value; }
  get seed() { return +this.fields.seed.value | 0; }
  get guidance() { return +(this.fields.guidance?.value ?? 1); }
  get choice() { return this.find(".imm-choice input:checked").value; }
  say(name, text) { this.find(`[data-out=${name}]`).textContent = text; }

  even() {
    // Stops at even distances, each a range input that may move between its neighbours
    const axis = this.find(".imm-axis"), states = this.find(".imm-states"), { steps } = this, { T, eps } = this.model;
    this.times = this.model.uniform(steps);
    axis.replaceChildren(); states.replaceChildren();
    for (const t of [T, eps]) make(axis, "i").style.left = this.left(t);
    this.inputs = this.times.slice(1, -1).map((t, i) => {
      const input = make(axis, "input", { type: "range", min: eps, max: T, step: .001, value: t });
      input.setAttribute("aria-label", `Stop ${i + 1} of ${steps - 1}`);
      input.oninput = () => this.drag(input, i + 1);
      return input;
    });
    this.frames = this.times.map(() => {
      const figure = make(states, "figure"), canvas = make(figure, "canvas", { className: this.kind });
      return { canvas, caption: make(figure, "figcaption") };
    });
    this.lines();
  }
  left(t) {
    // Where a time stands on the axis, whose thumbs are 18 pixels wide
    const share = (this.model.T - t) / (this.model.T - this.model.eps);
    return `calc(9px + ${share} * (100% - 18px))`;
  }
  drag(input, i) {
    const gap = .002, t = Math.min(this.times[i - 1] - gap, Math.max(this.times[i + 1] + gap, +input.value));
    input.value = this.times[i] = t;
    this.lines();
    this.run({ play: false });
  }
  lines() {
    // From each stop to what the sample looks like there
    const lines = this.find(".imm-lines"), box = lines.getBoundingClientRect(), { T, eps } = this.model;
    this.times.forEach((t, i) => {
      this.frames[i].caption.textContent = t.toFixed(2);
      this.inputs[i - 1]?.setAttribute("aria-valuetext", `t = ${t.toFixed(3)}`);
    });
    lines.innerHTML = this.times.map((t, i) => {
      const from = 9 + (T - t) / (T - eps) * (box.width - 18), frame = this.frames[i].canvas.getBoundingClientRect();
      const to = frame.left + frame.width / 2 - box.left, h = box.height;
      return `<path d="M${from} 0C${from} ${h / 2} ${to} ${h / 2} ${to} ${h}"/>`;
    }).join("");
    this.say("steps", this.steps);
    this.say("jumps", count(this.steps, "jump"));
    this.say("hint", [this.steps > 1 && `drag the stop${this.steps > 2 ? "s" : ""}`, this.aside].filter(Boolean).join(", "));
    if (this.fields.guidance) this.say("guidance", this.guidance);
  }

  async run({ play = true } = {}) {
    // Compute what the controls ask for, unless they ask for something else meanwhile; then show it
    const turn = ++this.turn;
    this.root.dataset.state = "busy";
    this.lines();
    await new Promise(requestAnimationFrame);
    if (turn !== this.turn) return;
    let ms = 0;
    for (const part of this.parts()) {
      const begin = performance.now();
      part();
      ms += performance.now() - begin;
      if (!play || still.matches) this.paint(this.steps);
      await pause(0);                                      // a moment for the reader's hand
      if (turn !== this.turn) return;
    }
    const { parameters, arithmetic } = this.model;
    this.say("facts", `${this.what}, ${count(this.steps, "jump")}: ${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms. A network of `
      + `${parameters.toLocaleString("en")} parameters, in ${arithmetic}. It runs in your browser: nothing is sent.`);
    if (play && !still.matches) await this.play(turn);
    if (turn !== this.turn) return;
    this.root.dataset.state = "done";
    this.paint();
  }
}

class Digits extends Figure {
  static options = [["all", "all", true], ...Array.from({ length: 10 }, (_, i) => [i, i])];
  constructor(root) {
    super(root, Digits.options);
    this.shown = 3;
    this.tiles = Array.from({ length: 16 }, (_, i) => {
      const button = make(this.find(".imm-sheet"), "button", { type: "button", onclick: () => { this.shown = i; if (root.dataset.state === "done") this.paint(); } });
      return { button, canvas: make(button, "canvas", { className: this.kind }) };
    });
    this.run();
  }
  get kind() { return "imm-digit"; }
  get aside() { return "press a digit"; }
  get model() { return load("digits"); }
  get labels() { return this.tiles.map((_, i) => this.choice === "all" ? i % 10 : +this.choice); }
  get what() { return `16 digits${this.guidance === 1 ? "" : " with guidance"}`; }

  *parts() {
    // The digit whose way is shown first, then the others, four at a time
    const { model, labels, times, guidance } = this, size = model.net.config.size ** 2, x = normal(this.seed, 16 * size);
    const order = [this.shown, ...[...labels.keys()].filter(i => i !== this.shown)];
    for (const some of [order.slice(0, 1), ...[1, 5, 9, 13].map(i => order.slice(i, i + 4))]) yield () => {
      const noise = Float64Array.from(some.flatMap(i => [...x.subarray(i * size, (i + 1) * size)]), v => model.sigma_d * v);
      const states = model.pushforward(noise, times, some.map(i => labels[i]), guidance);
      some.forEach((i, at) => this.states[i] = states.map(state => state.subarray(at * size, (at + 1) * size)));
    };
  }
  async play(turn) {
    // All digits, one jump after the other
    for (let i = 0; i < this.steps && turn === this.turn; i++) {
      this.paint(i);
      await pause(i ? 170 : 350);
    }
  }
  paint(step = this.steps) {
    if (!this.tiles) return;
    this.tiles.forEach(({ button, canvas }, i) => {
      button.setAttribute("aria-pressed", i === this.shown);
      button.setAttribute("aria-label", `Sample ${i + 1}, a ${this.labels[i]}`);
      if (this.states[i]?.[step]) this.draw(canvas, this.states[i][step]);
    });
    this.frames.forEach(({ canvas }, i) => { const x = this.states[this.shown]?.[i]; if (x) this.draw(canvas, x); });
  }
  draw(canvas, x) {
    // -1 ... 1 as paper ... ink, in 256 steps
    const side = this.model.net.config.size, [paper, ink] = this.colours ??= this.inks(), grey = new Uint8ClampedArray(4 * x.length);
    x.forEach((v, i) => {
      const share = Math.round(255 * Math.min(1, Math.max(0, (v + 1) / 2))) / 255;
      for (let c = 0; c < 3; c++) grey[4*i + c] = paper[c] + share * (ink[c] - paper[c]);
      grey[4*i + 3] = 255;
    });
    if (canvas.width !== side) canvas.width = canvas.height = side;
    canvas.getContext("2d").putImageData(new ImageData(grey, side, side), 0, 0);
  }
  inks() {
    const style = getComputedStyle(this.root), hex = name => style.getPropertyValue(name).trim().replace(/^#(.)(.)(.)$/, "#$1$1$2$2$3$3");
    return ["--paper", "--ink"].map(name => [1, 3, 5].map(i => parseInt(hex(name).slice(i, i + 2), 16)));
  }
}

class Plane extends Figure {
  static options = [["moons", "moons"], ["checkerboard", "checkerboard", true], ["spiral", "spiral"], ["gaussians", "Gaussians"]];
  constructor(root) {
    super(root, Plane.options);
    this.run({ play: false });
    const seen = new IntersectionObserver(([entry]) => { if (entry.isIntersecting) { seen.disconnect(); this.run(); } }, { threshold: .5 });
    seen.observe(this.find("canvas"));
  }
  get kind() { return "imm-cloud"; }
  get particles() { return 500; }
  get model() { return load(`toy-${this.choice}`); }
  get what() { return `${this.particles} points`; }

  *parts() {
    yield () => {
      const { model, particles } = this, noise = normal(this.seed, 2 * particles).map(v => model.sigma_d * v);
      this.states = model.pushforward(noise, this.times, Array(particles).fill(-1));
    };
  }
  async play(turn) {
    // Each jump takes two thirds of half a second, its particles on straight lines; then they rest
    const began = performance.now();
    for (let now = 0; now < this.steps && turn === this.turn; now = Math.max(0, await new Promise(requestAnimationFrame) - began) / 550) {
      const share = Math.min(1, now % 1 * 1.5);
      this.paint(Math.floor(now) + share ** 2 * (3 - 2 * share));
    }
  }
  paint(step = this.steps) {
    if (this.states.length !== this.times.length) return;
    const from = this.states[Math.floor(step)], to = this.states[Math.ceil(step)], share = step % 1;
    this.draw(this.find(".imm-plane"), from.map((v, i) => v + share * (to[i] - v)), .0075, this.data());
    if (step === this.steps) this.frames.forEach(({ canvas }, i) => this.draw(canvas, this.states[i], .014));
  }
  draw(canvas, x, radius, behind) {
    // Particles in the colour of the direction from which they came
    const paint = sharp(canvas), { window: w } = this.model, place = v => (v / w + 1) / 2, hues = this.colours ??= this.directions();
    const dot = (a, b, r) => { paint.beginPath(); paint.arc(place(a), 1 - place(b), r, 0, 7); paint.fill(); };
    if (behind) {
      paint.fillStyle = getComputedStyle(this.root).getPropertyValue("--data");
      for (let i = 0; i < behind.length; i += 2) paint.fillRect(place(behind[i]), 1 - place(behind[i + 1]), .006, .006);
    }
    for (let i = 0; i < x.length; i += 2) {
      paint.fillStyle = hues(Math.atan2(this.states[0][i + 1], this.states[0][i]));
      dot(x[i], x[i + 1], radius);
    }
  }
  data() { return this.model.behind ??= Array.from(bytes(this.model.points), v => (v / 127.5 - 1) * this.model.window); }
  directions() {
    const style = getComputedStyle(this.root), [saturation, lightness] = ["--saturation", "--lightness"].map(name => style.getPropertyValue(name));
    return angle => `hsl(${Math.round(angle / Math.PI * 180)} ${saturation} ${lightness})`;
  }
}

const figures = [];
function start() {
  const root = document.getElementById("imm-player");
  if (!root) return;
  if (!window.IMM_MODELS) { root.querySelector(".imm-sorry").hidden = false; return; }
  for (const [kind, name] of [[Digits, "digits"], [Plane, "plane"]]) figures.push(new kind(root.querySelector(`[data-figure=${name}]`)));
  const repaint = () => figures.forEach(figure => { figure.colours = null; figure.paint(); });      // light has become dark
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  new MutationObserver(repaint).observe(document.body, { attributes: true, attributeFilter: ["data-theme"] });
}
if (typeof document !== "undefined") start();

return { load, normal, Memory, IMM, figures };
})();
