/* The small ResNet of the book in plain JavaScript: tlhelpers.models.SmallResNet, features only.

   It reads the weights file that the package ships (safetensors, as base64 in weights.js) and gives
   the features that PyTorch gives, within 1e-4 (tests/test_try_it.py). Nothing here knows of pages.

   A classic script, not a module: modules do not load from a file that was saved to disk. */
"use strict";

var TryIt = TryIt || {};

TryIt.network = (() => {
  const NORM_EPSILON = 1e-5; // of PyTorch's BatchNorm2d

  /** The tensors of a safetensors file, by name: {shape, values}. Counters (integers) are left out.
      The file is the length of a header, the header in JSON, and the numbers, little-endian. */
  function readSafetensors(base64) {
    const text = atob(base64);
    const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const length = Number(view.getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    const read = {
      F32: (at, i) => view.getFloat32(at + 4 * i, true),
      F16: (at, i) => half(view.getUint16(at + 2 * i, true)),
    };
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets: ends }] of Object.entries(header)) {
      if (!(dtype in read)) continue;
      const count = shape.reduce((product, size) => product * size, 1);
      const at = 8 + length + ends[0];
      const values = Float64Array.from({ length: count }, (_, i) => read[dtype](at, i));
      tensors[name] = { shape, values };
    }
    return tensors;
  }

  /** The number that 16 bits stand for: a sign, 5 bits of exponent, 10 of fraction. */
  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  /** A convolution and the batch normalisation after it, as one convolution with a bias. */
  function folded(tensors, convolution, norm) {
    const { shape, values } = tensors[`${convolution}.weight`];
    const [outputs, inputs, kernel] = shape;
    const of = (name) => tensors[`${norm}.${name}`].values;
    const factor = of("weight").map((w, o) => w / Math.sqrt(of("running_var")[o] + NORM_EPSILON));
    const bias = of("bias").map((b, o) => b - of("running_mean")[o] * factor[o]);
    const perOutput = inputs * kernel * kernel;
    const weight = values.map((w, i) => w * factor[Math.floor(i / perOutput)]);
    return { outputs, inputs, kernel, weight, bias };
  }

  /** Maps with a border of zeros, `pad` wide. Maps are {channels, side, values}, row by row. */
  function padded(maps, pad) {
    if (pad === 0) return maps;
    const { channels, side, values } = maps;
    const wide = side + 2 * pad;
    const out = new Float64Array(channels * wide * wide);
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < side; y++) {
        const row = (c * side + y) * side;
        out.set(values.subarray(row, row + side), (c * wide + y + pad) * wide + pad);
      }
    return { channels, side: wide, values: out };
  }

  /** A convolution that pads with zeros. Each weight is added over the whole map at once. */
  function convolve(maps, { outputs, inputs, kernel, weight, bias }, stride = 1) {
    const { side: wide, values } = padded(maps, (kernel - 1) / 2);
    const side = Math.ceil(maps.side / stride);
    const out = new Float64Array(outputs * side * side);
    let w = 0;
    for (let o = 0; o < outputs; o++) {
      const map = out.subarray(o * side * side, (o + 1) * side * side).fill(bias[o]);
      for (let i = 0; i < inputs; i++)
        for (let ky = 0; ky < kernel; ky++)
          for (let kx = 0; kx < kernel; kx++) {
            const factor = weight[w++];
            for (let y = 0; y < side; y++) {
              let from = (i * wide + y * stride + ky) * wide + kx;
              const end = (y + 1) * side;
              for (let to = y * side; to < end; to++, from += stride)
                map[to] += factor * values[from];
            }
          }
    }
    return { channels: outputs, side, values: out };
  }

  /** max(0, maps + more), in place. */
  function rectified(maps, more) {
    const { values } = maps;
    for (let i = 0; i < values.length; i++)
      values[i] = Math.max(0, more ? values[i] + more.values[i] : values[i]);
    return maps;
  }

  /** Two convolutions and a shortcut around them (He et al. 2016). */
  function block(maps, { first, second, shortcut, stride }) {
    const inner = convolve(rectified(convolve(maps, first, stride)), second);
    return rectified(inner, shortcut ? convolve(maps, shortcut, stride) : maps);
  }

  /** The mean of each channel over the image plane. */
  function averaged({ channels, side, values }) {
    const area = side * side;
    return Float64Array.from({ length: channels }, (_, c) => {
      const map = values.subarray(c * area, (c + 1) * area);
      return map.reduce((sum, value) => sum + value, 0) / area;
    });
  }

  /** The network of a weights file. `features` takes a square grey image, ink 1 on paper 0, row by
      row, and returns what the network's head would see: 64 numbers. */
  function load(base64) {
    const tensors = readSafetensors(base64);
    const stem = folded(tensors, "stem.0", "stem.1");
    const blocks = ["stage1", "stage2", "stage3"].map((stage, i) => ({
      first: folded(tensors, `${stage}.0.conv1`, `${stage}.0.norm1`),
      second: folded(tensors, `${stage}.0.conv2`, `${stage}.0.norm2`),
      shortcut:
        `${stage}.0.shortcut.0.weight` in tensors
          ? folded(tensors, `${stage}.0.shortcut.0`, `${stage}.0.shortcut.1`)
          : null,
      stride: i === 0 ? 1 : 2,
    }));
    function features(image) {
      const maps = { channels: 1, side: Math.sqrt(image.length), values: Float64Array.from(image) };
      return averaged(blocks.reduce(block, rectified(convolve(maps, stem))));
    }
    return { features };
  }

  return { load };
})();
